"""The stand-in for the driver's NVML library: how it is built, told what to do, and asked."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).parent / "stand_in_nvml.c"
SONAME = "libnvidia-ml.so.1"
Knots = Sequence[tuple[float, float]]  # (s, value), straight lines between

TWO_GPUS = """
gpu A GPU-aaaa
track power 0 250
track memory_used 0 1e9
gpu B GPU-bbbb
track power 0 100
track memory_used 0 2e9
"""


def build(folder: Path) -> Path:
    """Compiles the stand-in into `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in NVML library")
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-Wall", "-Wextra", "-Werror"]
    shared = ["-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", str(folder / SONAME)]
    subprocess.run([compiler, *flags, *shared, str(SOURCE)], check=True)
    return folder


class StandIn:
    """The stand-in as this process found it, by the name under which pynvml looks for NVML."""

    def __init__(self, script: Path) -> None:
        self._library = ctypes.CDLL(SONAME)
        self._library.stand_in_epoch.restype = ctypes.c_double
        self._library.stand_in_power_moment.restype = ctypes.c_double
        self._script = script

    def follow(self, script: str) -> None:
        """What the next initialisation reads; stand_in_nvml.c has the language."""
        self._script.write_text(script)

    @property
    def users(self) -> int:
        """Initialisations that were not shut down."""
        return int(self._library.stand_in_users())

    @property
    def epoch(self) -> float:
        """When the script began, in seconds of `time.perf_counter()`: both are monotonic."""
        return float(self._library.stand_in_epoch())

    def calls(self, device: int, function: str) -> int:
        return int(self._library.stand_in_calls(device, function.encode()))

    def power_moments(self, device: int) -> list[float]:
        """When each answer about power was true, in seconds of `time.perf_counter()`."""
        count = self._library.stand_in_power_moments(device)
        return [self._library.stand_in_power_moment(device, call) for call in range(count)]

    def wait_until(self, script_time: float) -> None:
        """Returns once the script's clock shows `script_time` seconds."""
        while (left := self.epoch + script_time - time.perf_counter()) > 0:
            time.sleep(left)


def track(quantity: str, knots: Knots) -> str:
    return f"track {quantity} " + " ".join(f"{time} {value}" for time, value in knots)


def joules(power: Knots, start: float, end: float) -> float:
    """The exact integral: a straight line's is its middle's value times its length."""
    times, watts = zip(*power, strict=True)
    edges = [start, *(time for time in times if start < time < end), end]
    return sum(
        (right - left) * float(np.interp((left + right) / 2, times, watts))
        for left, right in itertools.pairwise(edges)
    )
