"""Wheel and sdist, each installed in an environment of its own, plan a shipped task.

Needs a package index with torch, as pinned in requirements.lock; minutes: `make check-dist`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Its output; fails with all that it said."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make dist` leaves."""
    folder = tmp_path_factory.mktemp("dist") / "dist"
    run("make", "dist", f"DIST={folder}", f"PYTHON={sys.executable}")
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(distributions: Path) -> Path:
    (found,) = distributions.glob("*.tar.gz")
    return found


def test_the_manylinux_tag_is_one_that_the_symbols_allow(wheel: Path) -> None:
    auditwheel = Path(sys.executable).with_name("auditwheel")
    audit = json.loads(run(auditwheel, "show", "--json", wheel))
    assert re.fullmatch(rf"grasp_kernels-.*-cp311-abi3-{audit['sym_tag']}\.whl", wheel.name)
    assert "manylinux" in audit["sym_tag"]
    assert set(audit["external_libs"]) == {"libtorch_cpu.so"}  # torch brings it
    assert not audit["unsupported_isa"]


def test_the_library_asks_nothing_of_python(wheel: Path, tmp_path: Path) -> None:
    """So one wheel is right for every Python: torch loads it, through its stable ABI."""
    library = zipfile.ZipFile(wheel).extract("grasp_kernels/_native.abi3.so", tmp_path)
    with open(library, "rb") as file:
        symbols = [s.name for s in ELFFile(file).get_section_by_name(".dynsym").iter_symbols()]
    assert len(symbols) > 50
    assert not [name for name in symbols if name.startswith(("Py", "_Py"))]


def plan_in_a_new_environment(
    folder: Path, distribution: Path, *options: str, first: tuple[str, ...] = (), **environment: str
) -> str:
    """Installs with the versions of requirements.lock, plans, and returns the backend it named."""
    run(sys.executable, "-m", "venv", folder / "environment")
    python = folder / "environment" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--no-cache-dir", "--constraint", LOCK)
    if first:
        run(*pip, *first)
    run(*pip, *options, f"grasp-kernels[tasks] @ {distribution.as_uri()}", **environment)
    arguments = ("pointmaze-umaze", "--problems", "8", "--horizon", "50", "--out", "plan")
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    run(python.with_name("grasp"), "plan", *arguments, cwd=folder, **cache, **environment)
    report = json.loads((folder / "plan" / "plan.json").read_text())
    assert report["success_model"] == 1.0
    assert (folder / "plan" / "plan.png").exists()
    assert not (folder / "cache" / "grasp_kernels").exists(), "nothing is compiled at run time"
    shutil.rmtree(folder / "environment")  # more than a gigabyte
    return str(report["backend"])


BUILD_TOOLS = ("torch", "numpy", "setuptools", "wheel")


def test_the_wheel(wheel: Path, tmp_path: Path) -> None:
    assert plan_in_a_new_environment(tmp_path, wheel).startswith("native (prebuilt")


def test_the_sdist_with_a_compiler(sdist: Path, tmp_path: Path) -> None:
    backend = plan_in_a_new_environment(
        tmp_path, sdist, "--no-build-isolation", first=BUILD_TOOLS, GRASP_KERNELS_NATIVE="1"
    )
    assert backend.startswith("native (prebuilt")


def test_the_sdist_without_a_compiler(sdist: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "bin"
    nowhere.mkdir()
    backend = plan_in_a_new_environment(
        tmp_path,
        sdist,
        "--no-build-isolation",
        first=BUILD_TOOLS,
        PATH=str(nowhere),
        CXX="",
    )
    assert backend == (
        "reference (native not available: not compiled when it was installed: "
        "no C++ compiler (g++, clang++, c++))"
    )


def test_the_sdist_without_torch_at_hand(sdist: Path, tmp_path: Path) -> None:
    """What `pip install` does by itself: it builds in an environment that has no torch."""
    backend = plan_in_a_new_environment(tmp_path, sdist)
    assert "not compiled when it was installed: No module named 'torch'" in backend
    assert "--no-build-isolation" in backend
