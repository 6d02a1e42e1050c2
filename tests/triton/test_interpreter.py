"""Runs the `interpreted_*.py` files of this folder under Triton's interpreter.

`TRITON_INTERPRET` is read when a kernel is defined, hence fresh processes: two, to start torch no
more often than two workers need. They test float32: the interpreter computes bfloat16 wrongly,
test_bfloat16.py says what is done instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FILES = set(Path(__file__).parent.glob("interpreted_*.py"))
OF_MODELS = set(Path(__file__).parent.glob("interpreted_mlp*.py"))


@pytest.mark.interpreter
@pytest.mark.timeout(900)  # a minute or two, where nothing else runs
@pytest.mark.parametrize("files", [OF_MODELS, FILES - OF_MODELS], ids=["models", "steps"])
def test_interpreted(files: set[Path]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, sorted(files))], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
