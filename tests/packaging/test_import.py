"""What `import grasp_planner` costs beyond torch, and what it leaves alone."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

import pytest

MOST_SECONDS = 0.3
MEASURED = """
import gc, json, sys, time
import torch
gc.freeze()  # going through all that torch has made is torch's cost, whenever it comes up
before, began = set(sys.modules), time.process_time()
import grasp_planner
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def imports() -> list[dict[str, Any]]:
    """Of several processes: seconds of this process's own time, so that a busy machine counts
    little, and the modules that came with them."""
    command = [sys.executable, "-c", MEASURED]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first writes it, as anybody's first does
    return [
        json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
        for _ in range(3)
    ]


def test_it_takes_less_than_a_third_of_a_second(imports: list[dict[str, Any]]) -> None:
    assert statistics.median(run["seconds"] for run in imports) < MOST_SECONDS


def test_it_imports_itself_and_little_else(imports: list[dict[str, Any]]) -> None:
    """No adapter, task or command; no package but those that torch has already."""
    for run in imports:
        foreign = {name.partition(".")[0] for name in run["modules"]} - set(sys.stdlib_module_names)
        assert foreign == {"grasp_kernels", "grasp_planner"}
        parts = {
            name.split(".")[1]
            for name in run["modules"]
            if name.startswith(("grasp_kernels.", "grasp_planner."))
        }
        heavy = {"adapters", "cli", "diagnostics", "evaluation", "plots", "tasks", "triton"}
        assert parts & heavy == set()
