"""The CPU library for tests: the installed one unless its sources are newer, else one built for the session."""

import shutil

import pytest

from amos_fairseq.csrc import build
from amos_fairseq.ops import compiled


def use_library(path, monkeypatch):
    """Let `ops/compiled.py` load this library on the CPU."""
    compiled._library.cache_clear()
    compiled.available.cache_clear()
    monkeypatch.setattr(compiled, "_path", lambda device_type: path)


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory):
    installed = build.library("cpu")
    newest = max(source.stat().st_mtime for source in build.FOLDER.iterdir() if source.suffix in (".h", ".cpp"))
    if installed.exists() and installed.stat().st_mtime > newest:
        return installed
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler to build the CPU kernels with")
    return build.build("cpu", tmp_path_factory.mktemp("csrc") / "libamos_cpu.so")


@pytest.fixture
def cpu_kernels(cpu_library, monkeypatch):
    """`ops.compiled` on the CPU."""
    use_library(cpu_library, monkeypatch)
    yield compiled
    compiled._library.cache_clear()
    compiled.available.cache_clear()
