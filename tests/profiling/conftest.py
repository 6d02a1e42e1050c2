from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml_stand_in import StandIn


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """For `sampled_*.py`: afterwards nobody may be left who uses NVML."""
    script = tmp_path / "script"
    monkeypatch.setenv("STAND_IN_NVML_SCRIPT", str(script))
    library = StandIn(script)
    assert library.users == 0
    yield library
    assert library.users == 0
