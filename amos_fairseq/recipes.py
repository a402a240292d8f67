"""The recipes, METHOD/NAME.yaml, and the Slurm scripts that train by them: of the repository, or of a wheel."""

import shutil
from pathlib import Path
from typing import Dict, Optional

PACKAGE = Path(__file__).resolve().parent
# A wheel has the repository's folders within the package.
ROOT = PACKAGE if (PACKAGE / "examples").is_dir() else PACKAGE.parent
EXAMPLES, SLURM = ROOT / "examples", ROOT / "slurm"


def recipes() -> Dict[str, str]:
    """What each recipe is, by METHOD/NAME: the first line of its file."""
    found = {}
    for path in sorted(EXAMPLES.glob("*/*.yaml")):
        with open(path, encoding="utf-8") as lines:
            found[f"{path.parent.name}/{path.stem}"] = lines.readline().strip("# \n")
    return found


def config_dir(name: str) -> Optional[Path]:
    """The folder of the recipe METHOD/NAME; None if there is none of this name."""
    return EXAMPLES / name.partition("/")[0] if name.removesuffix(".yaml") in recipes() else None


def copy(folder: Path) -> None:
    """Write all recipes to folder/examples and the scripts to folder/slurm, which find each other there.

    Raises ValueError if one of these is there already.
    """
    for part in (EXAMPLES, SLURM):
        if (folder / part.name).exists():
            raise ValueError(f"{folder / part.name} exists: name another folder, nothing is written over")
    for path in sorted([*EXAMPLES.glob("*/*.yaml"), *EXAMPLES.glob("*/model/*.yaml"), *SLURM.glob("*.sh")]):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
