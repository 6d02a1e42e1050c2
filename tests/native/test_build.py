"""Finding, building and choosing the extension, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grasp_kernels import native

from .conftest import step_arguments

ROOT = Path(native.__file__).parents[1]


def answers() -> list[torch.Tensor]:
    """A little of everything; the last tensor is the words."""
    results: list[torch.Tensor] = []
    for shape in ((2, 5, 7), (3, 70, 4), (1, 3, 5000)):
        for noise in ("white", "bridge"):
            for dtype in (torch.float32, torch.bfloat16):
                arguments = step_arguments(*shape, noise=noise, pull=0.5, dtype=dtype)
                results += [*native.lifted_step_(*arguments), arguments[0]]
    words = torch.arange(-(2**31), 2**31, 4093)[: 2**20].to(torch.int32)
    results.append(native.normals_from_words(words))
    results.append(native.philox_words(torch.tensor([2**62]), 9, 13, 5, 6, 7))
    return results


ANSWER = """
import sys, torch
from grasp_kernels import native
from tests.native.test_build import answers
torch.save((native.simd(), answers()), sys.argv[1])
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("simd", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_gives_the_same_answer(simd: str, tmp_path: Path) -> None:
    """Words to the bit; the rest to rounding, since the baseline has no fused multiply-add."""
    done = python(ANSWER, str(tmp_path / "forced"), GRASP_KERNELS_SIMD=simd)
    if "is not available here" in done.stderr:
        pytest.skip(f"this machine has no {simd}")
    assert done.returncode == 0, done.stderr
    used, forced = torch.load(tmp_path / "forced")
    assert used == simd
    chosen = answers()
    assert torch.equal(forced[-1], chosen[-1])
    for a, b in zip(forced[:-1], chosen[:-1], strict=True):
        rtol = 2.0**-7 if a.dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(a, b, rtol=rtol, atol=5e-6)


def test_an_unknown_instruction_set_is_an_error() -> None:
    done = python("from grasp_kernels import native; native.status()", GRASP_KERNELS_SIMD="AVX2")
    assert done.returncode == 1
    assert "GRASP_KERNELS_SIMD=AVX2 is not available here; possible: " in done.stderr


IMPORT = """
import os, torch, grasp_kernels
from grasp_kernels import native
print(hasattr(torch.ops.grasp_kernels_native, "simd"))
os.environ["GRASP_KERNELS_NATIVE"] = "0"
print(native.status())
print(hasattr(torch.ops.grasp_kernels_native, "simd"))
"""


def test_import_neither_builds_nor_loads_and_zero_skips() -> None:
    lines = python(IMPORT, GRASP_KERNELS_NATIVE="").stdout.splitlines()
    assert lines[0] == lines[2] == "False"
    assert "available=False" in lines[1]
    assert "GRASP_KERNELS_NATIVE=0" in lines[1]


NO_PREBUILT = """
import os
from grasp_kernels import native
native._prebuilt = lambda: None
print(native.status())
os.environ["GRASP_KERNELS_NATIVE"] = "1"
native.status.cache_clear()
native.status()
"""


def test_no_compiler_is_a_reason_and_one_makes_it_an_error(tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path), "CXX": "", "XDG_CACHE_HOME": str(tmp_path)}
    done = python(NO_PREBUILT, **nowhere, GRASP_KERNELS_NATIVE="")
    assert "available=False" in done.stdout
    assert "no C++ compiler" in done.stdout
    assert done.returncode == 1
    assert "GRASP_KERNELS_NATIVE=1, but: no C++ compiler" in done.stderr


def test_a_failing_compiler_is_a_reason_and_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho cannot compile this >&2\nexit 1\n")
    broken.chmod(0o755)
    cache = tmp_path / "cache"
    nowhere = {"CXX": str(broken), "XDG_CACHE_HOME": str(cache)}
    done = python(NO_PREBUILT, **nowhere, GRASP_KERNELS_NATIVE="")
    assert "available=False" in done.stdout
    assert "cannot compile this" in done.stdout
    assert [p.suffix for p in (cache / "grasp_kernels").iterdir()] == [".lock"]
