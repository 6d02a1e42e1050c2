"""Runs the `interpreted_*.py` files of this folder under Triton's interpreter.

`TRITON_INTERPRET` is read when a kernel is defined, hence a fresh process for each file. They test
float32: the interpreter computes bfloat16 wrongly, test_bfloat16.py says what is done instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"))


@pytest.mark.interpreter
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_interpreted(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
