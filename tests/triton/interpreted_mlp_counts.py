"""The bytes that aot_mlp.py counts are those the kernel asks for: counted in the interpreter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from interpreted_mlp_plan import problem
from triton.runtime.interpreter import InterpreterBuilder

from grasp_kernels import aot_mlp
from grasp_kernels.triton import mlp_lifted_plan_
from grasp_kernels.triton.mlp_structure import FIRST_SAVED, pitch, plan_tile


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, np.ndarray]]:
    """Addresses that are loaded and stored where the mask allows, as they come."""
    seen: list[tuple[str, np.ndarray]] = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def loaded(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        seen.append(("load", pointers.data[mask.data]))
        return load(self, pointers, mask, *rest)

    def stored(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        seen.append(("store", pointers.data[mask.data]))
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", loaded)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", stored)
    return seen


@pytest.mark.parametrize("steps", [3, 33])
def test_bytes_from_l2_are_what_the_kernel_asks_for(
    steps: int, traffic: list[tuple[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.Tensor] = []
    allocate = torch.empty

    def remember(*args: Any, **kwargs: Any) -> torch.Tensor:
        kept.append(allocate(*args, **kwargs))
        return kept[-1]

    p = problem(
        1, steps, 3, 2, iterations=1, noise="none",
        widths=(70, 66), activations=("silu", "relu", "identity"),
    )  # fmt: skip
    monkeypatch.setattr(torch, "empty", remember)
    mlp_lifted_plan_(*p.values())
    factors, saved = kept[-2:]
    tile, structure = plan_tile(steps, torch.float32), tuple(p["structure"])
    matrix = tile.rows * pitch(structure, tile.columns) * 4

    count: Counter[str] = Counter()
    for kind, addresses in traffic:
        for name, tensor in (("weights", p["weights"]), ("factors", factors), ("saved", saved)):
            start = tensor.data_ptr() + (FIRST_SAVED * matrix if name == "saved" else 0)
            end = tensor.data_ptr() + tensor.numel() * 4
            if name == "saved":
                end -= tile.rows * 4 * (structure[3] + 1)  # deviations, and the origin
            count[name, kind] += 4 * int(((addresses >= start) & (addresses < end)).sum())

    shape = structure, steps, tile.rows
    assert count["weights", "load"] == aot_mlp.weight_bytes(*shape, 4)
    assert count["factors", "load"] == aot_mlp.factor_bytes(*shape, 4, tile.columns)
    slopes = aot_mlp.slope_bytes(*shape)
    assert count["saved", "store"] == slopes // 2
    assert count["saved", "load"] >= slopes // 2  # whole chunks of 64 columns
