"""What is in the sdist and in the wheels, and what the wheels say of themselves.

The wheels are built from the sdist, with no compiler and with a stand-in for one that writes an
empty library: the recipe is tested here, the library by `make check-dist`.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import grasp_kernels

ROOT = Path(__file__).parents[2]
NATIVE, NOT_BUILT = "grasp_kernels/_native.abi3.so", "grasp_kernels/not_built.txt"
STAND_IN = f"""#!{sys.executable}
import sys
open(sys.argv[sys.argv.index("-o") + 1], "w").close()
"""


def build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """The sdist or the wheel of `source`, as the standard front end builds it."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source],
        env={**os.environ, "GRASP_KERNELS_NATIVE": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    out = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, out / "dist")) as archive:
        archive.extractall(out, filter="data")
    return next(path for path in out.iterdir() if path.name.startswith("grasp_kernels-"))


@pytest.fixture(scope="module", params=["compiler", "none", "broken"])
def wheel(request: pytest.FixtureRequest, sdist: Path, tmp_path_factory: pytest.TempPathFactory):
    """`(which compiler there was, the wheel)`."""
    folder = tmp_path_factory.mktemp("wheel")
    compiler = folder / "stand-in"
    compiler.write_text(STAND_IN if request.param == "compiler" else "#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    names = {"none": "there-is-no-such-compiler"}
    return request.param, build(
        "wheel", sdist, folder / "dist", CXX=names.get(request.param, str(compiler))
    )


def files(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def read(wheel: Path, name: str) -> str:
    archive = zipfile.ZipFile(wheel)
    return archive.read(next(n for n in archive.namelist() if n.endswith(name))).decode()


def test_the_sdist_has_all_that_git_has(sdist: Path) -> None:
    """A clone and an sdist build, test and measure alike."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    present = [name for name in tracked.stdout.splitlines() if (ROOT / name).exists()]
    assert [name for name in present if not (sdist / name).exists()] == []
    assert not list(sdist.rglob("*.so"))


def test_the_wheel_has_the_packages_and_nothing_else(wheel: tuple[str, Path], sdist: Path) -> None:
    found = files(wheel[1])
    packages = {"grasp_kernels", "grasp_planner", "grasp_bench"}
    tops = {name.split("/")[0] for name in found}
    assert tops == packages | {f"grasp_kernels-{grasp_kernels.__version__}.dist-info"}
    endings = {Path(name).suffix for name in found if name.split("/")[0] in packages}
    extra = {".so"} if wheel[0] == "compiler" else {".txt"}
    assert endings == {".py", ".md", ".json", ".safetensors"} | extra
    assert not [name for name in found if Path(name).name.startswith(("test_", "conftest"))]
    expected = {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in (
            ("grasp_kernels", sdist / "grasp_kernels"),
            ("grasp_planner", sdist / "python" / "grasp_planner"),
        )
        for suffix in ("py", "md", "json", "safetensors")
        for file in folder.rglob(f"*.{suffix}")
    }
    assert expected <= set(found)


def test_the_wheel_says_what_it_runs_on(wheel: tuple[str, Path]) -> None:
    """One wheel for every Python from 3.11 on, with native code; any machine, without."""
    compiler, path = wheel
    tags = [line for line in read(path, "/WHEEL").splitlines() if line.startswith("Tag: ")]
    if compiler == "none":
        assert tags == ["Tag: py3-none-any"]
    else:
        (tag,) = tags
        assert tag.startswith("Tag: cp311-abi3-linux_")


def test_the_wheel_has_the_native_library_or_the_reason(wheel: tuple[str, Path]) -> None:
    compiler, path = wheel
    assert (NATIVE in files(path)) == (compiler == "compiler")
    assert (NOT_BUILT in files(path)) == (compiler != "compiler")
    if compiler == "none":
        assert read(path, NOT_BUILT) == "no C++ compiler (there-is-no-such-compiler)"
    if compiler == "broken":
        assert "stand-in" in read(path, NOT_BUILT)


def test_the_metadata(wheel: tuple[str, Path]) -> None:
    metadata = email.message_from_string(read(wheel[1], "/METADATA"))
    assert metadata["Version"] == grasp_kernels.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    core = [r.split(";")[0] for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert [r.split(">")[0] for r in core] == ["torch", "numpy", "safetensors", "rich"]
    assert "grasp = grasp_planner.cli:entry_point" in read(wheel[1], "/entry_points.txt")


WITHOUT = """
from grasp_kernels import backends
print(backends()["native"])
"""


def test_an_install_without_native_code_says_why(wheel: tuple[str, Path], tmp_path: Path) -> None:
    compiler, path = wheel
    if compiler == "compiler":
        pytest.skip("has native code")
    zipfile.ZipFile(path).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "GRASP_KERNELS_NATIVE": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    reason = read(path, NOT_BUILT).strip()
    assert done.stdout.strip() == f"not available: not compiled when it was installed: {reason}"
