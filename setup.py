"""Package metadata; what the package needs and the `amos-fairseq` command."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="amos-fairseq",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "amos_fairseq/__init__.py").read_text(encoding="utf-8"))[1],
    description="ELECTRA-style pre-training of text encoders on fairseq: AMOS and its relatives",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="amos_fairseq authors",
    license="MIT",
    packages=find_packages(include=["amos_fairseq", "amos_fairseq.*"]),
    python_requires=">=3.10,<3.14",  # fairseq cannot read the type annotations of 3.14
    install_requires=[
        "torch>=2.4",
        "fairseq-fixed==0.12.3.1",  # fairseq's release for Python 3.11+ and current torch; it imports as `fairseq`
        "hydra-core==1.3.2",
        "omegaconf==2.3.0",
        "numpy>=1.23.5",
        "sentencepiece>=0.1.99",
        "tqdm>=4.60",
        "matplotlib>=3.7",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.5", "ruff>=0.8", "transformers>=4.40"],
        "tensorboard": ["tensorboard"],
    },
    entry_points={"console_scripts": ["amos-fairseq = amos_fairseq.cli.main:main"]},
)
