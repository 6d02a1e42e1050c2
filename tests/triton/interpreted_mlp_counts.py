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

Traffic = list[tuple[str, np.ndarray]]


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """Addresses that are loaded and stored where the mask allows, as they come."""
    seen: Traffic = []
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


def asked_for(
    p: dict[str, Any], traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[tuple[str, str]], tuple[Any, ...]]:
    """Bytes by tensor and direction of one call, and (structure, steps, rows of a tile).

    Of the scratch `saved`, "sums" is the first matrix, and "layers" what belongs to the layers.
    """
    kept: list[torch.Tensor] = []
    allocate = torch.empty

    def remember(*args: Any, **kwargs: Any) -> torch.Tensor:
        kept.append(allocate(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(torch, "empty", remember)
    mlp_lifted_plan_(*p.values())
    factors, saved = kept[-2:]
    steps, structure = p["actions"].shape[1], tuple(p["structure"])
    tile = plan_tile(steps, torch.float32)
    matrix = tile.rows * pitch(structure, tile.columns) * 4
    start, rest = saved.data_ptr(), tile.rows * 4 * (structure[3] + 1)  # deviations, the origin
    regions = {
        "weights": (p["weights"].data_ptr(), p["weights"].numel() * 4),
        "factors": (factors.data_ptr(), factors.numel() * 4),
        "sums": (start, matrix),
        "layers": (start + FIRST_SAVED * matrix, saved.numel() * 4 - rest - FIRST_SAVED * matrix),
    }
    count: Counter[tuple[str, str]] = Counter()
    for kind, addresses in traffic:
        for name, (first, size) in regions.items():
            count[name, kind] += 4 * int(((addresses >= first) & (addresses < first + size)).sum())
    return count, (structure, steps, tile.rows)


@pytest.mark.parametrize("steps", [3, 33])
def test_bytes_from_l2_are_what_the_kernel_asks_for(
    steps: int, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(
        1, steps, 3, 2, iterations=1, noise="none",
        widths=(70, 66), activations=("silu", "relu", "identity"),
    )  # fmt: skip
    count, shape = asked_for(p, traffic, monkeypatch)
    columns = plan_tile(steps, torch.float32).columns
    assert count["weights", "load"] == aot_mlp.weight_bytes(*shape, 4)
    assert count["factors", "load"] == aot_mlp.factor_bytes(*shape, 4, columns)
    slopes = aot_mlp.slope_bytes(*shape)
    assert count["layers", "store"] == slopes // 2
    assert count["layers", "load"] >= slopes // 2  # whole chunks of 64 columns


@pytest.mark.parametrize("norms", [(True, True, True), (True, False, False)])
def test_bytes_of_norms_and_simnorm(
    norms: tuple[bool, ...], traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With widths that fill their chunks, where padding adds nothing."""
    p = problem(
        1, 3, 16, 2, iterations=1, noise="none", norms=norms,
        widths=(64, 128), activations=("mish", "simnorm", "simnorm"), group=8,
    )  # fmt: skip
    count, shape = asked_for(p, traffic, monkeypatch)
    saved = sum(count[name, kind] for name in ("sums", "layers") for kind in ("load", "store"))
    assert saved == aot_mlp.slope_bytes(*shape) + aot_mlp.norm_bytes(*shape)
