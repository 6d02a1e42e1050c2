"""The GPU sampler, with NVIDIA's own nvidia-ml-py, on machines with and without NVML.

`sampled_*.py` need the stand-in where the loader looks for NVML, hence a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grasp_planner.profiling import GpuSampler
from nvml_stand_in import SONAME, build

pytest.importorskip("pynvml")
if sys.platform != "linux":
    pytest.skip("the stand-in is loaded by the Linux loader", allow_module_level=True)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def python(libraries: Path, *arguments: str) -> str:
    """What Python prints when NVML is looked for in `libraries` first."""
    path = f"{libraries}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(os.pathsep)
    environment = {**os.environ, "LD_LIBRARY_PATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_on_the_stand_in(libraries: Path) -> None:
    files = map(str, sorted(Path(__file__).parent.glob("sampled_*.py")))
    python(libraries, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)


SAMPLE_NOTHING = """
with GpuSampler() as sampler:
    ran = True
print(ran, sampler.report.devices, sampler.report.reason)
print(*GpuSampler.available())
"""


def test_without_the_library(tmp_path: Path) -> None:
    (tmp_path / SONAME).touch()  # refused by the loader: a driver elsewhere is not looked for
    code = f"from grasp_planner.profiling import GpuSampler\n{SAMPLE_NOTHING}"
    ran, available = python(tmp_path, "-c", code).splitlines()
    assert ran == "True () no NVML: NVML Shared Library Not Found"
    assert available == "False no NVML: NVML Shared Library Not Found"


def test_importing_probes_nothing_and_pynvml_may_be_absent(libraries: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from grasp_planner.profiling import GpuSampler
print("{SONAME}" in Path("/proc/self/maps").read_text())
sys.modules["pynvml"] = None
{SAMPLE_NOTHING}"""
    loaded, ran, available = python(libraries, "-c", code).splitlines()
    assert loaded == "False"
    assert ran.startswith("True () no NVML: ")
    assert ran.endswith("(pip install nvidia-ml-py)")
    assert available.startswith("False no NVML: ")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"period_s": 0}, ValueError, "period_s must be in 0.001 ... 60, got 0"),
        ({"period_s": float("nan")}, ValueError, "period_s must be in 0.001 ... 60, got nan"),
        ({"period_s": "20 ms"}, TypeError, "period_s must be a number, got str"),
        ({"period_s": True}, TypeError, "period_s must be a number, got bool"),
        ({"devices": []}, ValueError, "devices names none"),
        ({"devices": [-1]}, ValueError, "indices of at least 0, got -1"),
        ({"devices": [1.0]}, TypeError, r"indices \(int\) or UUIDs \(str\), got float"),
        ({"devices": [True]}, TypeError, r"indices \(int\) or UUIDs \(str\), got bool"),
        ({"devices": "GPU-aaaa"}, TypeError, "devices must be a sequence or None, got str"),
        ({"devices": 0}, TypeError, "devices must be a sequence or None, got int"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GpuSampler(**arguments)
