"""The recipes, METHOD/NAME.yaml, and the Slurm scripts that train by them: of the repository, or of a wheel."""

import shutil
from pathlib import Path
from typing import Dict, Optional

from amos_fairseq.files import new_folder

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
    """Write all recipes to examples/ of a new folder and the scripts to slurm/, which find each other there."""
    with new_folder(folder) as partial:
        for path in sorted([*EXAMPLES.glob("*/*.yaml"), *EXAMPLES.glob("*/model/*.yaml"), *SLURM.glob("*.sh")]):
            target = partial / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
