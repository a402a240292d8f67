"""`amos-fairseq doctor`: what an installation has, and the command that gets what is missing."""
import argparse
import importlib.metadata
import importlib.util
import platform
import sys
from typing import List, NamedTuple

from amos_fairseq.terminal import GREEN, MAGENTA, RED, coloured, visible

HELP = "What this installation has, which ops are compiled, and how to get what is missing."
COLOURS = {"ok": GREEN, "slow": MAGENTA, "optional": MAGENTA, "broken": RED}

COMPANIONS = ("torchaudio", "torchvision")  # of torch: each release is of one of torch's


class Finding(NamedTuple):
    subject: str
    state: str  # ok, slow, optional or broken
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    """Status 1 if anything is broken, 0 if not."""
    findings = [*software(), *companions(), *devices(), *ops(), attention()]
    width = max(len(finding.subject) for finding in findings)
    for subject, state, text in findings:
        print(f"{subject:<{width}}  {coloured(f'{state:<8}', sys.stdout, COLOURS[state])}  {visible(text)}")
    return int(any(finding.state == "broken" for finding in findings))


def software() -> List[Finding]:
    import torch

    findings = [
        Finding("python", "ok", platform.python_version()),
        Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
    ]
    try:
        from amos_fairseq.fairseq_repairs import REPAIRS, checked_original

        for target, (source, _) in REPAIRS.items():
            checked_original(target, source)
        text = f"fairseq-fixed {importlib.metadata.version('fairseq-fixed')}, {len(REPAIRS)} repairs fit"
        findings.append(Finding("fairseq", "ok", text))
    except (ImportError, RuntimeError, importlib.metadata.PackageNotFoundError) as error:
        findings.append(Finding("fairseq", "broken", " ".join(str(error).split())))
    found = importlib.util.find_spec("apex") is not None
    told = ("ok", "found") if found else ("optional", "not found; --optimizer fused_adamw needs none")
    return [*findings, Finding("apex", *told)]


def companions() -> List[Finding]:
    """Those of torch's companions that are there; transformers imports them where it finds them.

    fairseq asks for torchaudio, and pip takes the newest, whatever torch there is.
    """
    findings = []
    for name in filter(importlib.util.find_spec, COMPANIONS):
        try:
            findings.append(Finding(name, "ok", importlib.import_module(name).__version__))
        except Exception:  # whatever a library raises that does not find its torch
            remedy = f"{sys.executable} -m pip uninstall -y {name}"
            text = f"of another torch, which breaks transformers.pipeline and sentence_transformers: {remedy}"
            findings.append(Finding(name, "broken", text))
    return findings


def devices() -> List[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("GPUs", "optional", "none is seen: training runs on the CPU")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use --fp16"
    return [Finding("GPUs", "ok", f"{len(names)} x {', '.join(sorted(set(names)))}, {bf16}")]


def ops() -> List[Finding]:
    """Which implementation runs on each device; a compiled one is held against PyTorch's on a small example."""
    import torch

    from amos_fairseq.csrc.build import library
    from amos_fairseq.ops import compiled

    findings = []
    for device in ("cpu", "cuda"):
        subject = f"ops on {device}"
        built, command = library(device), compiled.BUILD_COMMAND[device]
        if device == "cuda" and built.exists() and not torch.cuda.is_available():
            findings.append(Finding(subject, "ok", f"compiled, and no GPU to try them on: {built}"))
        elif not compiled.available(device):
            state = "slow" if device == "cuda" and torch.cuda.is_available() else "optional"
            findings.append(Finding(subject, state, f"PyTorch; compile them: {command}"))
        elif agrees(device):
            findings.append(Finding(subject, "ok", f"compiled: {built}"))
        else:
            findings.append(Finding(subject, "broken", f"compiled ops differ from PyTorch's; build anew: {command}"))
    return findings


def attention() -> Finding:
    """Which attention with a relative bias runs; on a GPU the kernels are held against their meaning."""
    import torch

    from amos_fairseq.ops.attention import available

    if not torch.cuda.is_available():
        return Finding("attention", "ok", "PyTorch's, as on every CPU; GPUs have kernels with the bias inside")
    if not available("cuda"):
        return Finding("attention", "slow", "PyTorch's with a matrix of biases; kernels: triton 3.5 and an A100")
    if attention_agrees():
        return Finding("attention", "ok", "kernels with the relative bias inside; AMOS_FAIRSEQ_OPS=compiled takes them")
    return Finding("attention", "broken", "kernels differ from PyTorch: do without AMOS_FAIRSEQ_OPS=compiled")


def attention_agrees() -> bool:
    """Whether the kernels' result and gradients are the reference's."""
    import torch

    from amos_fairseq.ops.attention import AttentionDropout, reference_attention, relative_attention, relative_bias

    generator = torch.Generator().manual_seed(0)
    packed, table = torch.randn(2, 150, 3, 2, 64, generator=generator), torch.randn(9, 2, generator=generator)
    buckets = (torch.arange(-149, 150) // 30 + 4).clamp(0, 8)
    dropout = AttentionDropout(0.1, torch.tensor([1], device="cuda"))
    results = []
    for function in (relative_attention, reference_attention):
        leaves = [x.cuda().requires_grad_() for x in (packed, table)]
        result = function(leaves[0], relative_bias(leaves[1], buckets.cuda()), dropout=dropout)
        results.append([result, *torch.autograd.grad(result.square().sum(), leaves)])
    return all((one - other).norm() < 1e-3 * other.norm() for one, other in zip(*results))


def agrees(device: str) -> bool:
    """Whether compiled losses and draws are PyTorch's."""
    import torch

    from amos_fairseq.ops import Noise, masked_lm, use

    generator = torch.Generator().manual_seed(0)
    hidden, table = (torch.randn(*shape, generator=generator).to(device) for shape in ((8, 3, 16), (1000, 16)))
    weights = torch.full((8, 3), 1 / 3, device=device)
    noise = Noise(1, torch.arange(16, device=device).view(8, 2))
    readings = []
    for choice in ("compiled", "pytorch"):
        with use(choice):
            bias, targets = table[:, 0].contiguous(), torch.arange(8, device=device)
            readings.append(masked_lm(hidden, table, bias, targets, weights, noise=noise))
    ours, theirs = readings
    return torch.allclose(ours.losses, theirs.losses, atol=1e-4) and torch.equal(ours.sampled, theirs.sampled)
