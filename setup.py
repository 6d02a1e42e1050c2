"""Builds the native extension; everything else is in pyproject.toml.

`pip install --no-build-isolation .` compiles `csrc` against the torch that is installed. Without
torch or a compiler the install is pure Python, and `grasp_kernels` says at run time which path it
takes and why.
`GRASP_KERNELS_NATIVE=1` makes that an error, `=0` skips the build.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

WANTED = os.environ.get("GRASP_KERNELS_NATIVE", "")


def load_native() -> ModuleType:
    """`grasp_kernels/native.py` by itself: it knows how to compile, and needs only torch."""
    path = Path(__file__).parent / "grasp_kernels" / "native.py"
    spec = importlib.util.spec_from_file_location("native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):
    """Compiles with `native.build`, so that an install and a just-in-time build are one recipe."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            native.build(target)
        except native.BuildError as error:
            give_up(str(error))


def give_up(reason: str) -> None:
    if WANTED == "1":
        raise SystemExit(f"GRASP_KERNELS_NATIVE=1, but: {reason}")
    print(f"grasp-kernels: no native extension ({reason})", file=sys.stderr)


extensions = []
if WANTED != "0":
    try:
        native = load_native()
        native.compiler()
        extensions = [
            Extension("grasp_kernels._native", sources=[], py_limited_api=True, optional=True)
        ]
    except (ImportError, RuntimeError) as error:
        give_up(str(error))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
