"""Bandwidth and rate of the planner's kernels, beside what this machine can do, both measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_kernels import MLPDynamics, costs
from grasp_planner.config import GraspConfig

ROUNDS = 5  # turns of each ceiling
LEAST_COPY = 2**18  # bytes; below, a copy measures the call


@dataclass(frozen=True)
class Achieved:
    """Of one phase: bytes and operations that its ops must move and do, over its time.

    The counts are `grasp_kernels.costs`; an MLP's activations and the noise are not among the
    operations. The ceilings are a copy of as many bytes and a large float32 matrix product.
    """

    phase: str
    bytes_per_second: float
    copy_bytes_per_second: float
    operations_per_second: float
    product_operations_per_second: float


def achieved(
    config: GraspConfig,
    start: Tensor,
    dynamics: MLPDynamics | None,
    seconds: dict[str, float],
    calls: dict[str, int],
) -> tuple[Achieved, ...]:
    """The fused step of the general path, or the iterations of the whole-plan path."""
    plans, steps, features = len(start) * config.candidates, config.horizon, start.shape[1]
    noise = {"noise": config.noise, "modes": config.noise_modes}
    if plans == 0:
        return ()
    if dynamics is not None and "lifted iterations" in seconds:
        phase, times = "lifted iterations", 1
        cost = costs.mlp_lifted_plan_(
            plans,
            steps,
            dynamics.structure,
            iterations=config.iterations,
            optimizer=config.action_optimizer,
            dtype=dynamics.dtype,
            **noise,  # type: ignore[arg-type]
        )
    elif "fused step" in seconds:
        phase, times = "fused step", calls["fused step"]
        cost = costs.lifted_step_(plans, steps, features, dtype=start.dtype, **noise)  # type: ignore[arg-type]
    else:
        return ()
    copy, product = ceilings(start.device, cost.bytes)
    per_second = times / seconds[phase]
    return (Achieved(phase, cost.bytes * per_second, copy, cost.operations * per_second, product),)


def ceilings(device: torch.device, size: int) -> tuple[float, float]:
    """Bytes per second of a copy that moves `size` bytes, and operations per second of a product.

    Measured now, on this device, with torch's present number of threads.
    """
    if device.type == "cuda":
        from grasp_bench.gpu import GPURunner
        from grasp_bench.runner import Settings

        found = GPURunner(Settings(rounds=ROUNDS), device).ceilings
    else:
        from grasp_bench.ceilings import on_cpu

        found = on_cpu(torch.get_num_threads(), ROUNDS, [max(size, LEAST_COPY)])
    return found.bandwidth("copy", size), found.product
