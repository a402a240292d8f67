"""The arrows of the architecture: which part of the package may import which."""
import ast
import graphlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from amos_fairseq.methods import METHODS

PACKAGE = Path(__file__).parents[1] / "amos_fairseq"

BOTTOM = {"files", "options", "plugins", "random", "recipes", "run_log", "terminal", "user_errors"}
# the science
CORE = {"ops", "objectives", "corruption", "modules", "flops", "reference_flops", "quantities", "pooled", "methods"}
BASE = BOTTOM | {"json_files"}
# part -> parts that it may import besides itself, at the top of a file or within a function
ARROWS = {
    **{part: set() for part in BOTTOM},
    "recipes": {"files"},
    "user_errors": {"terminal"},
    "json_files": {"files", "options", "user_errors"},
    "csrc": set(),
    "demo": {"files"},
    "ops": {"random", "csrc"},
    "objectives": {"ops"},
    "corruption": {"ops", "random"},
    "modules": {"ops", "options", "random"},
    "flops": {"modules"},
    "reference_flops": {"modules"},
    "quantities": set(),
    "pooled": set(),
    "methods": {"options", "random"} | CORE - {"methods"},
    "data": BASE,
    "checkpoints": BASE | {"data"},
    "pretrained": BASE | CORE | {"data", "checkpoints"},
    "finetune": BASE | CORE | {"data", "checkpoints", "pretrained"},
    "export": BASE | CORE | {"data", "checkpoints", "pretrained", "finetune"},
    # what is fairseq's
    "fairseq_options": {"ops", "options", "user_errors"},
    "fairseq_help": {"fairseq_options", "options"},
    "hydra_options": set(),
    "optim": {"options"},
    "silenced": set(),
    "supervision": {"checkpoints", "fairseq_options", "files", "json_files", "options", "run_log", "terminal"}
    | {"user_errors"},
    "fairseq_repairs": BASE | {"data", "checkpoints", "fairseq_help", "fairseq_options", "hydra_options", "silenced"}
    | {"supervision"},
    "models": CORE | {"options", "pretrained", "finetune"},
    "criterions": CORE | {"pretrained", "finetune", "user_errors"},
    "tasks": BASE | CORE | {"data", "checkpoints", "pretrained", "finetune", "supervision", "fairseq_options"}
    | {"fairseq_repairs", "models", "criterions", "optim"},  # all that is registered
}
# on top: imported by nothing in ARROWS
ARROWS["analysis"] = BASE | CORE | {"data", "checkpoints", "pretrained", "finetune", "demo"}
ARROWS["cli"] = set(ARROWS) - {"optim", "models", "criterions", "tasks"}
# None of these needs fairseq; of `data` and `checkpoints`, some files do.
WITHOUT_FAIRSEQ = BASE | CORE | {"csrc", "demo", "pretrained", "finetune", "export"}


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


def test_no_files_import_each_other_in_a_circle():
    """At the top, within a function, or for annotations only."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    packages = {name.removesuffix(".__init__"): name for name in modules}
    graph = {}
    for name, path in modules.items():
        imported = imported_modules(path)
        found = {packages.get(full) or packages.get(full.rpartition(".")[0]) for full in imported}
        graph[name] = found - {None, name}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)  # else a CycleError


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
    if importlib.util.find_spec("triton") is None:
        modules.remove("amos_fairseq.ops.attention_triton")
    program = "import sys, importlib; sys.modules['fairseq'] = None; list(map(importlib.import_module, sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, *modules], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What belongs to a method stands on its class: elsewhere nothing is looked up by a method's name or class.
CONCRETE = {method.__module__ for method in METHODS.values()}
NAMED = {
    "pretrained/released.py",  # Microsoft's releases are of two methods, whose layouts are told apart
    "finetune/presets.py",  # a paper's presets may have its method's name
    "analysis/expectations.py",  # what one setting of the quick start measured
}


def names_of_methods(node: ast.AST) -> set:
    """Registered names that a part of a program looks up or compares with."""
    looked_up = []
    if isinstance(node, ast.Dict):
        looked_up = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.Compare):
        looked_up = [node.left, *node.comparators]
    elif isinstance(node, ast.Subscript):
        looked_up = [node.slice]
    constants = (part for whole in looked_up for part in ast.walk(whole) if isinstance(part, ast.Constant))
    return {constant.value for constant in constants if isinstance(constant.value, str)} & METHODS.keys()


@pytest.mark.parametrize(
    "path", [path for path in FILES if part_of(path) != "methods"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_outside_of_methods_knows_one_of_them(path):
    imported = imported_modules(path)
    assert not [name for name in imported if name in CONCRETE or name.rpartition(".")[0] in CONCRETE]
    found = set().union(*map(names_of_methods, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    assert bool(found) == (str(path.relative_to(PACKAGE)) in NAMED), found
