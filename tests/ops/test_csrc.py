import ctypes
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from amos_fairseq.csrc import build
from amos_fairseq.ops import Noise, compiled

ROOT = Path(build.__file__).parents[2]


# ---- the kernels


def test_every_kernel_compiles_for_a100_and_h100_without_spilling_registers(tmp_path):
    try:
        command = build.compiler("cuda")
    except ValueError as error:
        pytest.skip(str(error))

    def report(architecture):
        source, out = build.FOLDER / "cuda.cu", tmp_path / f"{architecture}.cubin"
        options = [f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
        command_line = [option for option in command if option != "-shared"] + [*options, str(source), "-o", str(out)]
        return subprocess.run(command_line, capture_output=True, text=True, check=True).stderr

    with ThreadPoolExecutor() as pool:
        reports = list(pool.map(report, ("sm_80", "sm_90")))
    for text in reports:
        kernels = re.findall(r"Compiling entry function '(\w+)'", text)
        spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        # Six kernels read fp32, bf16 and fp16; the noise has no input.
        assert len(kernels) == len(spills) == 19
        assert set(spills) == {("0", "0", "0")}


def test_the_declared_kernels_are_the_headers():
    pointers = {None: "void", torch.float32: "float", torch.int32: "std::int32_t", torch.int64: "std::int64_t",
                torch.bool: "std::uint8_t"}
    numbers = {ctypes.c_int: "int", ctypes.c_int64: "std::int64_t", ctypes.c_uint64: "std::uint64_t",
               ctypes.c_float: "float"}

    def in_c(name, kind):
        return f"{pointers[kind.dtype]}* {name}" if isinstance(kind, compiled.Array) else f"{numbers[kind]} {name}"

    declared = {
        kernel.name: [*(in_c(*argument) for argument in kernel.arguments.items()), "int place", "void* stream"]
        for kernel in compiled.KERNELS
    }
    header = re.findall(r"AMOS_EXPORT int (\w+)\(([^)]*)\)", (build.FOLDER / "library.h").read_text(encoding="utf-8"))
    assert declared == {name: re.split(r",\s+", arguments.replace("const ", "")) for name, arguments in header}


@pytest.fixture(scope="module")
def block_of_threads(tmp_path_factory):
    """The kernels with sixteen threads in a block, which wait for each other at barriers, as on a GPU."""
    try:
        command = build.compiler("cpu")
    except ValueError as error:
        pytest.skip(str(error))
    folder, out = Path(__file__).parent, tmp_path_factory.mktemp("threads") / "libamos_cpu.so"
    include = ["-I", str(build.FOLDER), "-I", str(folder), "-O1", str(folder / "block_of_threads.cpp"), "-o", str(out)]
    subprocess.run([*command, *include], check=True)
    return out


@pytest.mark.parametrize("heads, vocabulary", [(1, 40), (3, 1001), (5, 37), (20, 300), (1, 3000)])
def test_a_block_of_many_threads_gives_what_one_thread_gives(cpu_library, block_of_threads, load, heads, vocabulary):
    g = torch.Generator().manual_seed(0)
    rows, width = 4, 21
    logits, weights = torch.randn(rows, heads, vocabulary, generator=g) * 3, torch.rand(rows, heads, generator=g)
    logits[1, :, 10:15], weights[2, 0] = float("-inf"), 0.0
    bias, targets = torch.randn(vocabulary, generator=g), torch.tensor([3, 20, vocabulary, 0])
    excluded = torch.arange(vocabulary) % 5 == 0
    noise = Noise(99, torch.randint(0, 2**40, (rows, 2), generator=g))
    table, hidden = torch.randn(vocabulary, width, generator=g) / 5, torch.randn(2, rows, width, generator=g)
    results = []
    for library in (cpu_library, block_of_threads):
        load(library)
        written, flat = logits.clone(), logits[:, 0].clone()
        readings = [
            *compiled.read_rows(written, bias, targets, weights, excluded, noise, 0.3, True, True),
            *compiled.read_rows(logits.clone(), bias, targets, weights, None, noise, 5.0, True, False),  # long lists
            *compiled.logsumexp_rows(flat, bias),
        ]
        compiled.softmax_rows_(flat, bias, readings[-3])
        gradient = compiled.soft_sample_gradient(*hidden, table, bias, readings[5], noise, 0.3)
        soft = compiled.gumbel_softmax(logits[:, 0].contiguous(), noise, 0.3)
        tops = [
            compiled.top_tokens(logits[:, 0].contiguous(), bias, targets % vocabulary, excluded, drawn, count)
            for drawn, count in ((noise, 7), (None, 29), (noise, 1))
        ]
        results.append([*readings, written, flat, gradient, soft, compiled.gumbel_noise(noise, vocabulary), *tops])
    for one, many in zip(*results):
        if one.is_floating_point():
            torch.testing.assert_close(many, one, rtol=2e-6, atol=2e-6, equal_nan=True)
        else:
            assert torch.equal(many, one)


@pytest.fixture
def load(monkeypatch):
    """load(path): from now on the CPU library is this one."""

    def load(path):
        compiled._library.cache_clear()
        monkeypatch.setattr(compiled, "_path", lambda device_type: path)

    yield load
    compiled._library.cache_clear()


# ---- the build


def test_no_source_needs_pytorchs_headers():
    for source in build.FOLDER.iterdir():
        if source.suffix in (".h", ".cpp", ".cu"):
            assert not re.search(r"#include\s*<(torch|ATen|c10)", source.read_text(encoding="utf-8")), source.name


def test_a_missing_compiler_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ValueError, match="^nvcc not found: install the CUDA toolkit, or set CUDA_HOME to its folder$"):
        build.build("cuda")
    with pytest.raises(ValueError, match=r"^no C\+\+ compiler found: install g\+\+, or set CXX to one$"):
        build.build("cpu")


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind is 'rocm': choose cpu or cuda"):
        build.compiler("rocm")


def test_nvcc_is_taken_from_cuda_home_first(monkeypatch, tmp_path):
    found = []
    for name in ("home", "path"):
        (tmp_path / name / "bin").mkdir(parents=True)
        found.append(tmp_path / name / "bin" / "nvcc")
        found[-1].touch(mode=0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path/bin"))
    assert build.compiler("cuda")[0] == str(found[0])
    monkeypatch.delenv("CUDA_HOME")
    assert build.compiler("cuda")[0] == str(found[1])


def test_a_failed_build_shows_the_compilers_words_and_leaves_the_old_library(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo half > "$2"; echo no room >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    library = tmp_path / "libamos_cpu.so"
    library.write_text("old")
    with pytest.raises(RuntimeError, match=r"compiler failed on cpu.cpp:\nno room"):
        build.build("cpu", library)
    assert library.read_text() == "old" and sorted(x.name for x in tmp_path.iterdir()) == ["compiler", "libamos_cpu.so"]


def test_the_command_tells_its_usage_and_errors_in_one_line():
    def told(*arguments, **environment):
        command = [sys.executable, "-m", "amos_fairseq.csrc.build", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
        assert done.returncode == 1 and not done.stdout
        return done.stderr.strip().splitlines()

    assert told() == ["usage: python -m amos_fairseq.csrc.build {cpu,cuda}"]
    assert told("rocm") == ["usage: python -m amos_fairseq.csrc.build {cpu,cuda}"]
    assert told("cpu", PATH="/nowhere", CXX="none")[0].startswith("amos_fairseq: error: no C++ compiler found")
