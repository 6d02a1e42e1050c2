"""How kernels are launched: from a fixed table, chosen by the length of a row.

No `@autotune`: the fused step updates its input in place, so a timing run would corrupt it, and a
loss must have the same bits whatever the batch and the slice. The order in which a row is summed is
set by its tile, hence the tile may depend on the number of features, the kind of noise and the
dtype, but not on the number of plans or time steps.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_TILE_FEATURES = 1024
ALIGNMENT = 16  # bytes, the widest single access of a GPU thread


@dataclass(frozen=True)
class Tile:
    """A program's share: `rows` time steps by `features` features, worked on by `warps` warps."""

    rows: int
    features: int
    warps: int


# 16 elements a thread, four 128-bit accesses of float32 per tensor: enough to spread its addressing
# and its share of the reduction over, few enough to keep in registers. Long rows come one to a
# tile, which needs no mask for the last time step. The shortest get fewer elements, since plans
# seldom have more than 64 steps.
TILES = {
    4: Tile(rows=64, features=4, warps=2),
    8: Tile(rows=64, features=8, warps=2),
    16: Tile(rows=64, features=16, warps=2),
    32: Tile(rows=64, features=32, warps=4),
    64: Tile(rows=32, features=64, warps=4),
    128: Tile(rows=16, features=128, warps=4),
    256: Tile(rows=4, features=256, warps=2),
    512: Tile(rows=1, features=512, warps=1),
    1024: Tile(rows=1, features=1024, warps=2),
}

# By bytes per element. The bridge draws one normal per (mode, feature), which all rows of a thread
# share: more rows, and as many features as fill 128-bit accesses.
BRIDGE_TILES = {4: Tile(rows=4, features=512, warps=4), 2: Tile(rows=2, features=1024, warps=4)}

# Fusion of a product and a sum only where a kernel says `tl.fma`: see rng.py.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "num_stages": 1}


MAX_GRID_AXIS = 65535  # of the second and third axis of a CUDA grid


def tile_for(features: int, noise: str = "none", itemsize: int = 4) -> Tile:
    """The tile of a row of `features`: the row itself, padded, or an even cut of a long row."""
    if noise == "bridge" and features > 256:
        return BRIDGE_TILES[itemsize]
    if features > MAX_TILE_FEATURES:
        return TILES[512 if features % 1024 == 512 else 1024]
    return TILES[max(4, 1 << (features - 1).bit_length())]


def grid(plans: int, steps: int, features: int, tile: Tile) -> tuple[int, int, int]:
    """One program per plan, time tile and feature tile.

    Plans come first because only the first axis of a CUDA grid may be longer than `MAX_GRID_AXIS`.
    """
    shape = plans, -(-steps // tile.rows), -(-features // tile.features)
    if max(shape[1:]) > MAX_GRID_AXIS:
        raise ValueError(
            f"one launch holds at most {MAX_GRID_AXIS * tile.rows} steps of {features} features, "
            f"got {steps}; call it on slices of time (`first_step`, `horizon`)"
        )
    return shape


def launch(features: int, tile: Tile) -> dict[str, Any]:
    """The compile-time arguments that follow from the tile."""
    return {
        "ROWS": tile.rows,
        "TILE": tile.features,
        "WHOLE": features % tile.features == 0,
        "num_warps": tile.warps,
        **OPTIONS,
    }


def vector(*tensors: Tensor | None) -> int:
    """Elements of the first tensor in 16 bytes if all rows of all are aligned and whole, else 1.

    All strides count, also of dimensions of length 1: a slice must be summed as the whole is.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:
        size = tensor.element_size()
        lengths = (tensor.shape[-1], *tensor.stride()[:-1])
        if tensor.data_ptr() % ALIGNMENT or any(size * n % ALIGNMENT for n in lengths):
            return 1
    return ALIGNMENT // given[0].element_size()


def int32_bits(word: int) -> int:
    """The low 32 bits of `word` as a signed integer: one kernel argument type for every value."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, which is where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
