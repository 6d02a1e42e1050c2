"""How fast an iteration of `mlp_lifted_plan` could be at best: bytes and operations, counted.

(And one of second order, `mlp_jacobians` and then `lifted_newton_step`: aot_newton.py.)

A bound, not a measurement. What is counted is what the algorithm of the kernel asks for, each by
one function below. A GPU can't be faster than the largest of operations / peak, bytes of weights /
bandwidth of L2, and bytes from device memory / bandwidth of device memory; latency, barriers and
everything elementwise come on top and are not in it. Nor is scratch, which L2 serves where L1 does
not: its bytes are in the count of L2, not in the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from grasp_kernels.reference.mlp_dynamics import ACTIVATIONS

PLANS = 1024
"""Plans of the batch that the table is for."""
ITERATIONS = 100
"""Iterations of one launch, over which reading a plan and the weights once is spread."""


@dataclass(frozen=True)
class GPU:
    """Peak rates per second; products without sparsity."""

    bfloat16: float
    float32: float
    device_memory: float
    l2: float


# Where documents differ, the higher rate: a bound may be too low, never too high.
# Operations: "NVIDIA H100 Tensor Core GPU Architecture" (whitepaper), H100 SXM5, peaks without
# sparsity: 989.4 and 66.9 TFLOP/s. The "NVIDIA H100 Tensor Core GPU" datasheet rounds them, and the
# "NVIDIA H200 Tensor Core GPU" datasheet has the same. B200: "NVIDIA Blackwell Architecture
# Technical Brief", HGX B200 per GPU: bfloat16 4500 with sparsity, so 2250; float32 80 (75 in the
# table of the HGX platform).
# Device memory: the datasheets, H100 SXM 3.35 and H200 SXM 4.8 TB/s; the brief, B200 8 TB/s (7.7 in
# the table of the HGX platform).
# L2: an assumption, on no datasheet. NVIDIA's A100 whitepaper has 5120 bytes per clock, taken here
# at 1.98 GHz boost for Hopper, and twice for the two dies of B200. Measurements (an H100 PCIe at
# Chips and Cheese, 2023) are lower.
GPUS = {
    "H100": GPU(989.4e12, 66.9e12, 3.35e12, 5120 * 1.98e9),
    "H200": GPU(989.4e12, 66.9e12, 4.8e12, 5120 * 1.98e9),
    "B200": GPU(2250e12, 80e12, 8e12, 2 * 5120 * 1.98e9),
}
SOURCE = (
    "peaks, dense: NVIDIA H100 whitepaper, H100 and H200 datasheets (SXM),\n"
    "Blackwell technical brief (HGX B200, per GPU);\n"
    "L2: an assumption, 5120 bytes per clock (A100 whitepaper) at 1.98 GHz, twice for B200"
)


def sizes(structure: Sequence[int]) -> list[int]:
    """The inputs of the model, then the width of each layer."""
    return [structure[0] + structure[1], *structure[4::4]]


def products(structure: Sequence[int]) -> int:
    """Multiply-adds of one row and iteration: the model, and its transpose for the action only."""
    widths = sizes(structure)
    weights = [a * b for a, b in pairwise(widths)]
    return sum(weights) + sum(weights[1:]) + widths[1] * structure[1]


def operations_per_iteration(structure: Sequence[int], steps: int) -> int:
    """Of one plan: two for each multiply-add of its `steps` rows. Elementwise ones not counted."""
    return 2 * steps * products(structure)


def weight_bytes(structure: Sequence[int], steps: int, rows: int, itemsize: int) -> int:
    """Of weights, from L2, for one plan and iteration: what multiplies a row, once per tile."""
    return -(-steps // rows) * products(structure) * itemsize


def factor_bytes(structure: Sequence[int], steps: int, rows: int, itemsize: int, chunk: int) -> int:
    """Of what is multiplied by weights, read again for each chunk of `chunk` output columns."""
    widths = sizes(structure)
    pairs = list(pairwise(widths))  # inputs and outputs of each product
    pairs += [(b, a) for a, b in pairs[1:]] + [(widths[1], structure[1])]
    reads = sum(inputs * -(-outputs // chunk) for inputs, outputs in pairs)
    return -(-steps // rows) * rows * reads * itemsize


def slope_bytes(structure: Sequence[int], steps: int, rows: int, backs: int = 1) -> int:
    """Of derivatives, or a simnorm's shares, written on the way there and read on the way back,
    which is walked `backs` times.

    float32; the identity has none.
    """
    widths, kinds = structure[4::4], structure[5::4]
    units = sum(width for width, kind in zip(widths, kinds, strict=True) if kind != 0)
    return -(-steps // rows) * rows * units * 4 * (1 + backs)


def norm_bytes(structure: Sequence[int], steps: int, rows: int, backs: int = 1) -> int:
    """Of rows that norms and simnorms need whole, float32; slopes and shares are in `slope_bytes`.

    A norm: sums written and read twice (mean and squares), the normalised ones written; on each way
    back the cotangent written, and both read twice. A simnorm: its sums and their cotangent, each
    written and read once more. A number per row and norm, its 1 / deviation, is left out.
    """
    widths, kinds, norms = structure[4::4], structure[5::4], structure[6::4]
    simnorm = ACTIVATIONS.index("simnorm")
    passes = sum(
        width * ((4 + 5 * backs) * norm + 2 * (1 + backs) * (kind == simnorm))
        for width, kind, norm in zip(widths, kinds, norms, strict=True)
    )
    return -(-steps // rows) * rows * passes * 4


def l2_bytes_per_iteration(
    structure: Sequence[int], steps: int, rows: int, itemsize: int, chunk: int
) -> int:
    """Of one plan: weights, and the scratch between layers. L1 may serve some of the scratch."""
    return (
        weight_bytes(structure, steps, rows, itemsize)
        + factor_bytes(structure, steps, rows, itemsize, chunk)
        + slope_bytes(structure, steps, rows)
        + norm_bytes(structure, steps, rows)
    )


def model_bytes(structure: Sequence[int], itemsize: int) -> int:
    """Of weights and constants, once."""
    widths = sizes(structure)
    weights = sum(a * b for a, b in pairwise(widths)) * itemsize
    norms = sum(2 * w + 1 for w, norm in zip(widths[1:], structure[6::4], strict=True) if norm)
    return weights + 4 * (2 * widths[0] + 2 * structure[0] + sum(widths[1:]) + norms)


def device_bytes_per_iteration(
    structure: Sequence[int], steps: int, itemsize: int, plans: int, iterations: int
) -> float:
    """Of one plan: what a launch must fetch and write back once, spread over its iterations.

    The trajectory, actions and both of Adam's moments go in and out, goal, rates and plan id in,
    `sound` and the losses out; the weights and constants come in once for all plans. Schedule and
    bounds, a few numbers for all plans, are left out.
    """
    state_features, action_features = structure[:2]
    moving = 4 * ((steps + 1) * state_features + 3 * steps * action_features)
    once = 4 * state_features + 4 * 3 + 8 + 2 * 1
    plan = 2 * moving + once + 4 * iterations
    return (plan + model_bytes(structure, itemsize) / plans) / iterations


def bounds(
    operations: float, weight_bytes: float, device_bytes: float, dtype: str, plans: int = PLANS
) -> dict[str, float]:
    """Microseconds per iteration of `plans` plans on each GPU: the longest of the three."""
    found = {}
    for name, gpu in GPUS.items():
        peak = gpu.bfloat16 if dtype == "bfloat16" else gpu.float32
        seconds = max(operations / peak, weight_bytes / gpu.l2, device_bytes / gpu.device_memory)
        found[name] = round(1e6 * plans * seconds, 2)
    return found


@dataclass(frozen=True)
class Counts:
    """Of one plan and iteration of one variant; 0 for kernels that are not whole iterations."""

    l2_bytes: int = 0
    l2_weight_bytes: int = 0
    device_bytes: float = 0.0
    operations: int = 0


def counts(name: str, dtype: str) -> Counts:
    """For a variant by name."""
    from grasp_kernels import aot_newton
    from grasp_kernels.triton import mlp_variants
    from grasp_kernels.triton.variants import ITEMSIZE

    kernel, _, size = name.rpartition("_")
    if kernel != "mlp_lifted_plan":
        return aot_newton.counts(kernel, size, dtype)
    structure, steps = mlp_variants.MODELS[size], mlp_variants.STEPS
    tile, itemsize = mlp_variants.tile_of(kernel, dtype), ITEMSIZE[dtype]
    return Counts(
        l2_bytes_per_iteration(structure, steps, tile.rows, itemsize, tile.columns),
        weight_bytes(structure, steps, tile.rows, itemsize),
        round(device_bytes_per_iteration(structure, steps, itemsize, PLANS, ITERATIONS), 1),
        operations_per_iteration(structure, steps),
    )


HEADER = (
    f"{'kernel':<28}{'dtype':<10}{'operations':>12}{'L2 bytes':>12}"
    + f"{'of weights':>12}{'device bytes':>14}"
    + "".join(f"{f'{name} us':>10}" for name in GPUS)
)


def table(names: Sequence[tuple[str, str]]) -> list[str]:
    """The lines of the table of bounds, for those of the variants (name, dtype) that have one."""
    lines = []
    for name, dtype in dict.fromkeys(names):
        count = counts(name, dtype)
        if count.operations:
            found = bounds(count.operations, count.l2_weight_bytes, count.device_bytes, dtype)
            lines.append(
                f"{name:<28}{dtype:<10}{count.operations:>12}{count.l2_bytes:>12}"
                f"{count.l2_weight_bytes:>12}{count.device_bytes:>14}"
                + "".join(f"{us:>10.2f}" for us in found.values())
            )
    if not lines:
        return []
    title = (
        f"a bound, not a measurement: operations and bytes per plan and lifted iteration, and the "
        f"time\nof an iteration of {PLANS} plans ({ITERATIONS} iterations a launch; of the second "
        f"order, one) that follows"
    )
    return ["", title, HEADER, *lines, SOURCE]
