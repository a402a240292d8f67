"""The arrows of the architecture: which part of the package may import which."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amos_fairseq"

# part -> parts that it may import besides itself; what is not listed here lies above all of these.
ARROWS = {
    "random": set(),
    "ops": set(),
    "objectives": {"ops"},
    "corruption": {"ops", "random"},
    "modules": {"ops", "random"},
    "flops": {"modules"},
    "methods": {"ops", "random", "objectives", "corruption", "modules", "flops"},
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
    elif part not in TOP:
        assert not parts & TOP
