"""The arrows of the architecture: which part of the package may import which."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amos_fairseq"

# part -> parts that it may import besides itself; what is not listed here lies above all of these.
ARROWS = {
    "random": set(),
    "user_errors": set(),
    "ops": set(),
    "objectives": {"ops"},
    "corruption": {"ops", "random"},
    "modules": {"ops", "random"},
    "flops": {"modules"},
    "methods": {"ops", "random", "objectives", "corruption", "modules", "flops"},
    "scoring": {"ops", "objectives", "modules", "methods"},
    "pretrained": {"ops", "modules", "methods", "data", "checkpoints", "scoring", "export"},
    "working_folder": {"data"},
    "finetune": {
        "ops", "modules", "methods", "data", "checkpoints", "scoring", "pretrained", "user_errors", "working_folder"
    },
    "export": {"ops", "modules", "methods", "data", "checkpoints", "pretrained", "scoring", "finetune", "user_errors"},
}
# The same for parts of which only some files use fairseq.
PARTLY_ON_FAIRSEQ = {
    "data": {"random", "user_errors"},
    "checkpoints": {"data", "supervision", "user_errors"},
}
TOP = {"cli", "analysis"}  # imported by nothing below


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    part, imported = part_of(path), imported_modules(path)
    parts = {name.split(".")[1] for name in imported if name.startswith("amos_fairseq.")} - {part, "__version__"}
    if part in ARROWS:
        assert not any(name.split(".")[0] in ("fairseq", "fairseq_cli", "hydra", "omegaconf") for name in imported)
        assert parts <= ARROWS[part]
    elif part in PARTLY_ON_FAIRSEQ:
        assert parts <= PARTLY_ON_FAIRSEQ[part]
    elif part not in TOP:
        assert not parts & TOP


def test_what_needs_no_fairseq_can_be_imported_without():
    """Nor does what it imports: of `data` and `checkpoints`, the files that use none."""
    modules = sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES if part_of(path) in ARROWS
    )
    program = "import sys, importlib; sys.modules['fairseq'] = None; list(map(importlib.import_module, sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, *modules], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
