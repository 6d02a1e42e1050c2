"""Inputs for kernel tests, and the formulas of METHOD written out again in numpy, float64.

The formulas call nothing of the library: they are what it is held against.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import grasp_kernels

REFERENCE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FUSED_DTYPES = (torch.float32, torch.bfloat16)
CASES = [("reference", dtype) for dtype in REFERENCE_DTYPES] + [
    ("native", dtype) for dtype in FUSED_DTYPES
]
IDS = [f"{backend}-{str(dtype).removeprefix('torch.')}" for backend, dtype in CASES]


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Send every op of this test to one backend, through the public calls."""
    if backend == "reference":
        monkeypatch.setattr("grasp_kernels.ops.choose", lambda device, dtype: "reference")
    else:
        found = grasp_kernels.backends()[backend]
        if not found:
            pytest.skip(f"{backend} {found}")


# ------------------------------------------------------------------------------------------- Philox


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 in uint64 arithmetic, where a product of two 32-bit words is exact."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x = [np.asarray(c, dtype=np.uint64) for c in counter]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    for _ in range(10):
        p0 = x[0] * np.uint64(0xD2511F53)
        p1 = x[2] * np.uint64(0xCD9E8D57)
        x = [(p1 >> half) ^ x[1] ^ k[0], p1 & mask, (p0 >> half) ^ x[3] ^ k[1], p0 & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return x


def words(ids: list[int], rows: list[int], features: int, seed: int, iteration: int) -> np.ndarray:
    """uint64 `(N, rows, 4 ceil(D / 4))` from the coordinates of METHOD."""
    groups = -(-features // 4)
    first = np.asarray(rows, dtype=np.uint64)[None, :, None] * np.uint64(groups)
    first = first + np.arange(groups, dtype=np.uint64)
    ids_ = np.asarray(ids, dtype=np.uint64)[:, None, None]
    shape = (len(ids), len(rows), groups)
    counter = (
        np.broadcast_to(first, shape),
        np.full(shape, iteration, dtype=np.uint64),
        np.broadcast_to(ids_ & np.uint64(0xFFFFFFFF), shape),
        np.broadcast_to(ids_ >> np.uint64(32), shape),
    )
    drawn = philox(counter, (seed % 2**32, seed >> 32))
    return np.stack(drawn, axis=-1).reshape(len(ids), len(rows), 4 * groups)


def normals(drawn: np.ndarray) -> np.ndarray:
    """Box-Muller of METHOD, float64."""
    u = ((drawn >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23
    radius, angle = np.sqrt(-2 * np.log(u[..., 0::2])), 2 * np.pi * u[..., 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(drawn.shape)


def noise(
    ids: list[int],
    rows: list[int],
    features: int,
    *,
    seed: int,
    iteration: int,
    noise: str = "white",
    modes: int = 8,
    horizon: int = 1,
) -> Tensor:
    """The noise of METHOD, float64 `(N, rows, D)`."""
    if noise == "none":
        return torch.zeros(len(ids), len(rows), features, dtype=torch.float64)
    if noise == "white":
        drawn = normals(words(ids, rows, features, seed, iteration))
        return torch.from_numpy(drawn[..., :features].copy())
    z = normals(words(ids, list(range(modes)), features, seed, iteration))[..., :features]
    k = np.arange(1, modes + 1)
    wave = np.sin(np.pi * k * np.asarray(rows)[:, None] / horizon) / k
    wave[[r % horizon == 0 for r in rows]] = 0.0
    return torch.from_numpy(np.einsum("tk,nkd->ntd", wave, z))


# ---------------------------------------------------------------------------------- the lifted step


def inputs(
    plans: int, steps: int, features: int, dtype: torch.dtype, *, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """trajectory, prediction, goal."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    trajectory = draw(plans, steps + 1, features)
    return trajectory, draw(plans, steps, features), draw(plans, features)


def column(value: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1).expand(len(like), 1, 1)


def step(
    trajectory: Tensor,
    prediction: Tensor,
    goal: Tensor,
    *,
    state_lr: Any,
    goal_weight: Any,
    noise_scale: Any = 0.0,
    xi: Tensor | None = None,
    w: Tensor | None = None,
    v: Tensor | None = None,
    state_gradient: Tensor | None = None,
    state_gradient_scale: float = 0.0,
    free: bool = False,
) -> dict[str, Tensor]:
    """One iteration's state step as METHOD writes it, float64, on the values as stored."""
    x, p, g = trajectory.double(), prediction.double(), goal.double()
    w = torch.ones(p.shape[2], dtype=torch.float64) if w is None else w.double()
    v = torch.ones(p.shape[1], dtype=torch.float64) if v is None else v.double()
    residual, goal_error = p - x[:, 1:], p - g[:, None]
    dynamics = (w * residual * residual).sum(-1)
    goal_term = v * (w * goal_error * goal_error).sum(-1)
    gw = column(goal_weight, x)
    cotangent = 2 * w * (residual + gw * v[:, None] * goal_error)
    gradient = -2 * w * residual
    if state_gradient is not None:
        gradient = gradient + state_gradient_scale * state_gradient.double()[:, 1:]
    moved = x.clone()
    moved[:, 1:] += -column(state_lr, x) * gradient
    if xi is not None:
        moved[:, 1:] += column(noise_scale, x) * xi
    if not free and x.shape[1] > 1:
        moved[:, -1] = x[:, -1]
    total = dynamics + gw[..., 0] * goal_term
    return {
        "dynamics": dynamics,
        "goal": goal_term,
        "total": total,
        "cotangent": cotangent,
        "trajectory": moved,
    }


def bits(tensor: Tensor) -> Tensor:
    """The bit pattern, so that -0.0 and 0.0 differ and a NaN equals itself."""
    size = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return tensor.detach().contiguous().view(size)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(bits(one), bits(other))
