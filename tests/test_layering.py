"""The arrows of the architecture: which part of the package may import which."""
import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amos_fairseq"

BOTTOM = {"files", "options", "random", "user_errors"}
CORE = {"ops", "objectives", "corruption", "modules", "flops", "methods"}  # the science
# part -> parts that it may import besides itself, at the top of a file or within a function
ARROWS = {
    **{part: set() for part in BOTTOM},
    "csrc": set(),
    "demo": set(),
    "ops": {"random", "csrc"},
    "objectives": {"ops"},
    "corruption": {"ops", "random"},
    "modules": {"ops", "options", "random"},
    "flops": {"modules"},
    "methods": {"ops", "options", "random", "objectives", "corruption", "modules", "flops"},
    "data": BOTTOM,
    "checkpoints": BOTTOM | {"data"},
    "pretrained": BOTTOM | CORE | {"data", "checkpoints"},
    "finetune": BOTTOM | CORE | {"data", "checkpoints", "pretrained"},
    "export": BOTTOM | CORE | {"data", "checkpoints", "pretrained", "finetune"},
    # what is fairseq's
    "fairseq_options": {"ops", "options", "user_errors"},
    "optim": {"options"},
    "supervision": {"options", "user_errors", "checkpoints", "fairseq_options"},
    "fairseq_repairs": BOTTOM | {"data", "checkpoints", "fairseq_options", "supervision"},
    "models": CORE | {"options", "pretrained", "finetune"},
    "criterions": CORE | {"pretrained", "finetune", "user_errors"},
    "tasks": BOTTOM | CORE | {"data", "checkpoints", "pretrained", "finetune", "supervision", "fairseq_repairs"}
    | {"models", "criterions", "optim"},  # all that is registered
}
# on top: imported by nothing in ARROWS
ARROWS["analysis"] = BOTTOM | CORE | {"data", "checkpoints", "pretrained", "finetune"}
ARROWS["cli"] = set(ARROWS) - {"optim", "models", "criterions", "tasks"}
# None of these needs fairseq; of `data` and `checkpoints`, some files do.
WITHOUT_FAIRSEQ = BOTTOM | CORE | {"csrc", "demo", "pretrained", "finetune", "export"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set:
    """Full names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))
PARTS = {part_of(path) for path in FILES} - {"__init__"}
INTERFACE = {"__version__", "from_pretrained"}  # of `amos_fairseq` itself


def test_every_part_has_its_arrows_and_there_is_no_circle():
    assert ARROWS.keys() == PARTS
    assert len(list(graphlib.TopologicalSorter(ARROWS).static_order())) == len(PARTS)  # else a CycleError that tells it


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    part, imported = part_of(path), imported_modules(path)
    if part == "__init__":
        return
    parts = {name.split(".")[1] for name in imported if name.startswith("amos_fairseq.")} - {part} - INTERFACE
    assert parts <= ARROWS[part]
    if part in WITHOUT_FAIRSEQ:
        assert not any(name.split(".")[0] in ("fairseq", "fairseq_cli", "hydra", "omegaconf") for name in imported)


def test_what_needs_no_fairseq_can_be_imported_without():
    """Nor does what it imports: of `data` and `checkpoints`, the files that use none."""
    modules = sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES if part_of(path) in WITHOUT_FAIRSEQ
    )
    program = "import sys, importlib; sys.modules['fairseq'] = None; list(map(importlib.import_module, sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, *modules], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
