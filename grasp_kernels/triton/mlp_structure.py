"""Where everything of a packed model is, computed while a kernel compiles.

A kernel takes the model's `structure` (see `reference.mlp_dynamics`) as one compile-time tuple,
MODEL. The functions here read it: sizes, kinds, and offsets into `weights` and `constants`. All
addresses then are constants plus an index, and a kind that a model does not use leaves no code.

A program's scratch is two tensors. `factors`, in the dtype of the weights, has two matrices: what
is multiplied by weights next, and what comes out. `saved`, float32, has one matrix for each of:

    0          sums of a layer before its norm or simnorm; on the way back their cotangent
    1          the op's own: prediction, cotangent, adjoint
    2 ...      per layer: slope; and, with a norm, the normalised sums

of ROWS by `pitch`, the widest layer, padded; behind them a row of ROWS numbers per layer, its
1 / deviation, and one more for `mlp_layer.origin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.reference.mlp_dynamics import ACTIVATIONS

SUMS, OWN = tl.constexpr(0), tl.constexpr(1)
FIRST_SAVED = 2
MAX_WIDTH = 1024
MAX_LAYERS = 8
MIN_DOT = 16  # the shortest side of a product on tensor cores
GROUP_TILE = 4096  # numbers of simnorm at a time


def mlp_fits(structure: Sequence[int]) -> bool:
    """Whether the kernels take a model of these sizes.

    No size is held in registers as a whole, so what limits it is scratch that stays in the L2 cache
    (widths) and code, which is laid out layer by layer (layers).
    """
    state_features, action_features, _, count = structure[:4]
    widths = structure[4::4]
    return count <= MAX_LAYERS and max(*widths, state_features + action_features) <= MAX_WIDTH


@triton.constexpr_function
def state_features(model):
    return model[0]


@triton.constexpr_function
def action_features(model):
    return model[1]


@triton.constexpr_function
def is_residual(model):
    return bool(model[2])


@triton.constexpr_function
def last_layer(model):
    return model[3] - 1


@triton.constexpr_function
def width(model, layer):
    """Outputs of a layer; layer -1 is the model's input."""
    return model[4 + 4 * layer] if layer >= 0 else model[0] + model[1]


@triton.constexpr_function
def activation(model, layer):
    return ACTIVATIONS[model[5 + 4 * layer]]


@triton.constexpr_function
def has_norm(model, layer):
    return bool(model[6 + 4 * layer])


@triton.constexpr_function
def group(model, layer):
    return model[7 + 4 * layer]


@triton.constexpr_function
def is_elementwise(model, layer):
    """Neither norm nor simnorm: what a sum becomes does not depend on the others of its row."""
    return not has_norm(model, layer) and activation(model, layer) != "simnorm"


@triton.constexpr_function
def is_affine(model, layer):
    """The layer's derivative does not depend on its input."""
    return not has_norm(model, layer) and activation(model, layer) == "identity"


@triton.constexpr_function
def weight_at(model, layer):
    """Where the layer's W starts in `weights`."""
    return sum(width(model, i) * width(model, i - 1) for i in range(layer))


@triton.constexpr_function
def output_scale_at(model):
    """Where it starts in `constants`; input mean and scale come before, the shift after."""
    return 2 * (model[0] + model[1])


@triton.constexpr_function
def bias_at(model, layer):
    """Where the layer's bias starts in `constants`; gain, shift and epsilon follow."""
    place = 2 * (model[0] + model[1]) + 2 * model[0]
    for before in range(layer):
        size = width(model, before)
        place += 3 * size + 1 if has_norm(model, before) else size
    return place


@triton.constexpr_function
def slope_slot(model, layer):
    slot = FIRST_SAVED
    for before in range(layer):
        slot += 1 + has_norm(model, before)
    return slot


@triton.constexpr_function
def slots(model):
    return slope_slot(model, model[3])


@triton.constexpr_function
def chunk(size, most):
    """The columns of a matrix of `size` columns that are worked on at a time."""
    return min(most, max(MIN_DOT, 1 << (size - 1).bit_length()))


@triton.constexpr_function
def piece(size, columns):
    """As `chunk`, for a pass without a product: all such passes alike, and narrower.

    Norm and activation need registers for every number, and so do the indices of each shape of tile
    that a kernel works with: compilers keep those from before all loops, and spill.
    """
    return chunk(size, columns // 2)


@triton.constexpr_function
def is_whole(size, piece):
    """Whether pieces divide it, so that the last one needs no mask."""
    return size % piece == 0


@triton.constexpr_function
def stages(row_size, dtype):
    """Of a loop that loads rows of weights: 1, no pipeline, where they are not 16 bytes aligned.

    They would be copied to shared memory by 4 bytes, each with an address in a register.
    """
    return None if row_size * dtype.primitive_bitwidth % 128 == 0 else 1


@triton.constexpr_function
def pitch(model, columns):
    """Numbers from row to row of every scratch matrix."""
    sizes = [width(model, layer) for layer in range(-1, model[3])]
    return max(-(-size // chunk(size, columns)) * chunk(size, columns) for size in sizes)


@triton.constexpr_function
def saved_size(model, rows, columns):
    """Float32 numbers of one program in `saved`."""
    return rows * (slots(model) * pitch(model, columns) + model[3] + 1)


@triton.constexpr_function
def group_padded(size):
    return 1 << (size - 1).bit_length()


@triton.constexpr_function
def group_count(size, padded):
    """How many groups of simnorm are worked on at a time: 64 columns, or one group."""
    return min(1 << (size - 1).bit_length(), max(1, 64 // padded))


@triton.constexpr_function
def group_rows(rows, columns):
    """How many rows of simnorm are worked on at a time."""
    return max(1, min(rows, GROUP_TILE // columns))


@dataclass(frozen=True)
class MLPTile:
    """A program's share: `rows` rows of the model, `columns` outputs and `depth` inputs at once."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def launch(self) -> dict[str, int | bool]:
        """The compile-time arguments that follow from the tile."""
        options: dict[str, int | bool] = {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": False,  # as everywhere, see rng.py; products say fma themselves
        }
        if torch.version.hip is None:
            # Said outright: left alone, ptxas aims at two such blocks, 128 registers, and spills.
            options["maxnreg"] = 255
        return options


def plan_tile(steps: int, dtype: torch.dtype) -> MLPTile:
    """For rows that are the time steps of one plan.

    bfloat16: 64 rows are one wgmma (sm_90) or tcgen05 (sm_100) instruction. float32 is multiplied
    without tensor cores, exactly, in smaller pieces. Never a function of the number of plans: the
    order of a sum must not depend on it.
    """
    rows = max(16, 1 << (steps - 1).bit_length())
    if dtype == torch.bfloat16:
        return MLPTile(min(64, rows), columns=64, depth=32, warps=8, stages=4)
    return MLPTile(min(32, rows), columns=64, depth=16, warps=8, stages=2)


def rollout_tile(dtype: torch.dtype) -> MLPTile:
    """For rows that are different plans at one time step.

    Every step streams all weights into the multiprocessor, for however many rows. In bfloat16
    the tensor cores finish 64 rows meanwhile; in float32 more rows than 16 would take longer than
    the stream.
    """
    return plan_tile(64 if dtype == torch.bfloat16 else 16, dtype)


def scratch(model: tuple[int, ...], tile: MLPTile, programs: int, like: Tensor) -> list[Tensor]:
    """`factors` (dtype of the weights `like`) and `saved`, for `programs` programs."""
    numbers = 2 * tile.rows * pitch(model, tile.columns)
    factors = torch.empty(programs, numbers, dtype=like.dtype, device=like.device)
    size = saved_size(model, tile.rows, tile.columns)
    saved = torch.empty(programs, size, dtype=torch.float32, device=like.device)
    return [factors, saved]


def programs_for(plans: int, like: Tensor) -> int:
    """Programs of a launch with a plan each at a time: no more than a GPU runs at once, or nearly.

    Scratch is allocated per program, and what waits would only push it out of the L2 cache.
    """
    if not like.is_cuda:
        return plans  # the interpreter
    return min(plans, 2 * torch.cuda.get_device_properties(like.device).multi_processor_count)
