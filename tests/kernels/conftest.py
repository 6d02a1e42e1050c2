from __future__ import annotations

import kernel_cases
import pytest
import torch


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kernel_cases.use_backend(monkeypatch, request.param)
    return request.param


@pytest.fixture(params=kernel_cases.CASES, ids=kernel_cases.IDS)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Every (backend, storage dtype) there is, as the dtype; the backend is set up behind it."""
    backend, dtype = request.param
    kernel_cases.use_backend(monkeypatch, backend)
    return dtype


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)
