"""How fast `mlp_jacobians` and `lifted_newton_step` could be at best: bytes and operations.

A bound, not a measurement, in the sense of aot_mlp.py: of one plan of `mlp_variants.STEPS` steps,
one launch an iteration. What is serial is not in it: the two scans of a Newton step wait for one
small product after another, so that a few plans take as long as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from grasp_kernels.aot_mlp import PLANS, Counts, model_bytes, norm_bytes, sizes, slope_bytes
from grasp_kernels.reference.mlp_dynamics import ACTIVATIONS

HOLD, SOLVES = 5, 2
"""Of the Newton step that is counted: steps of a block, and solutions of the small system."""


def ways(structure: Sequence[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Inputs and outputs of each product: on the way there, and back from one feature.

    Behind an elementwise last layer the way back starts from a row of its W, without a product.
    """
    there = list(pairwise(sizes(structure)))
    back = [(outputs, inputs) for inputs, outputs in there]
    activation, norm = structure[-3:-1]
    elementwise = not norm and activation != ACTIVATIONS.index("simnorm")
    return there, back[:-1] if elementwise and len(back) > 1 else back


def products(structure: Sequence[int]) -> int:
    """Multiply-adds of one row of `mlp_jacobians`: the model, and D times its transpose."""
    there, back = ways(structure)
    return sum(a * b for a, b in there) + structure[0] * sum(a * b for a, b in back)


def jacobian_counts(
    structure: Sequence[int], steps: int, rows: int, itemsize: int, chunk: int, plans: int
) -> Counts:
    """As for `mlp_lifted_plan`, with D ways back, and tiles that go on from one plan to the next.

    All weights are streamed on each way.
    """
    there, back = ways(structure)
    features, width = structure[:2]
    total = plans * steps
    tiles = -(-total // rows)
    starts = features * sizes(structure)[-2] if len(back) < len(there) else 0
    weights = tiles * (products(structure) + starts) * itemsize
    reads, reads_back = (sum(a * -(-b // chunk) for a, b in way) for way in (there, back))
    scratch = tiles * rows * (reads + features * reads_back) * itemsize
    scratch += slope_bytes(structure, total, rows, features)
    scratch += norm_bytes(structure, total, rows, features)
    moving = 4 * total * (features + width + features * (1 + features + width))
    device = round((moving + model_bytes(structure, itemsize)) / plans, 1)
    operations = 2 * steps * products(structure)
    return Counts((weights + scratch) // plans, weights // plans, device, operations)


def newton_counts(features: int, width: int, steps: int, hold: int, solves: int) -> Counts:
    """With a weight for every feature. S is written once, read and written for each solution, and
    read for the step; operations of the small system, in float64, count as if they were float32.
    """
    blocks, matrix, s = -(-steps // hold), features * features, features * width
    back = steps * (features * matrix + features * s + matrix)
    system = solves * (blocks * (features * s + s) + features * matrix // 3 + matrix)
    forth = blocks * s + steps * (matrix + s)
    read = (2 * steps + 2) * features + steps * (width + matrix + s) + 1
    written = steps * (features + width) + 3
    l2 = 4 * blocks * s * (2 + 2 * solves)
    return Counts(l2, 0, 4.0 * (read + written), 2 * (back + system + forth))


def counts(kernel: str, size: str, dtype: str) -> Counts:
    """For a variant by the two parts of its name."""
    from grasp_kernels.triton import mlp_variants
    from grasp_kernels.triton.variants import ITEMSIZE, NEWTON

    if kernel == "lifted_newton_step":
        return newton_counts(*NEWTON[size], mlp_variants.STEPS, HOLD, SOLVES)
    if kernel != "mlp_jacobians":
        return Counts()
    structure, tile = mlp_variants.MODELS[size], mlp_variants.tile_of(kernel, dtype)
    return jacobian_counts(
        structure, mlp_variants.STEPS, tile.rows, ITEMSIZE[dtype], tile.columns, PLANS
    )
