"""The example of docs/diagnostics.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "diagnostics.md"


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(source, PAGE.name, "exec"), {"__name__": "docs"})
    printed = capsys.readouterr().out
    assert "arrived | It ends" in printed
    assert "bound-limited | The plan ends" in printed
