"""Builds the native extension; everything else is in pyproject.toml.

`pip install --no-build-isolation .` compiles `csrc` against the torch that is installed. Without
torch or a compiler the install is pure Python, and `grasp_kernels` says at run time which path it
takes and why: what was missing here is installed with it, in `not_built.txt`.
`GRASP_KERNELS_NATIVE=1` makes that an error, `=0` skips the build.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

WANTED = os.environ.get("GRASP_KERNELS_NATIVE", "")
NOT_BUILT = Path("grasp_kernels", "not_built.txt")  # read by grasp_kernels/native.py


def load_native() -> ModuleType:
    """`grasp_kernels/native.py` by itself: it knows how to compile, and needs only torch."""
    path = Path(__file__).parent / "grasp_kernels" / "native.py"
    spec = importlib.util.spec_from_file_location("native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPython(build_py):
    """Leaves out the tests in `bench`, and installs the reason why nothing was compiled."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if not module[1].startswith("test_")]

    def run(self) -> None:
        super().run()
        if missing and not self.editable_mode:
            Path(self.build_lib, NOT_BUILT).write_text(missing)


class BuildNative(build_ext):
    """Compiles with `native.build`, so that an install and a just-in-time build are one recipe."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        not_built = target.parent / NOT_BUILT.name
        not_built.unlink(missing_ok=True)
        try:
            native.build(target)
        except native.BuildError as error:
            give_up(str(error))
            target.unlink(missing_ok=True)  # of an earlier build in the same folder
            if not self.inplace:
                not_built.write_text(str(error))


def give_up(reason: str) -> str:
    if WANTED == "1":
        raise SystemExit(f"GRASP_KERNELS_NATIVE=1, but: {reason}")
    print(f"grasp-kernels: no native extension ({reason})", file=sys.stderr)
    return reason


extensions = []
missing = ""  # why there is nothing to compile with
if WANTED == "0":
    missing = give_up("skipped: GRASP_KERNELS_NATIVE=0")
else:
    try:
        native = load_native()
        native.compiler()
        extensions = [
            Extension("grasp_kernels._native", sources=[], py_limited_api=True, optional=True)
        ]
    except ImportError as error:
        missing = give_up(f"{error}; with torch installed: pip install --no-build-isolation")
    except RuntimeError as error:
        missing = give_up(str(error))

setup(
    ext_modules=extensions,
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
