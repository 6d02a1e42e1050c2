"""Every kernel as it is launched on aligned, contiguous tensors whose rows are whole tiles.

A variant is what the launcher would compile for such a call: the same tile, the same compile-time
constants, the same declared alignments. It needs no tensor and no GPU, only names and types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triton.compiler import ASTSource

from grasp_kernels.triton import configs, mlp_variants
from grasp_kernels.triton.action_step import BLOCK, WARPS, action_step_kernel
from grasp_kernels.triton.gaussian_noise import gaussian_noise_kernel
from grasp_kernels.triton.lifted_loss import lifted_loss_kernel
from grasp_kernels.triton.lifted_loss_backward import lifted_loss_backward_kernel
from grasp_kernels.triton.lifted_newton_step import (
    JITTER,
    lifted_newton_step_kernel,
    newton_options,
    padded,
)
from grasp_kernels.triton.lifted_step import lifted_step_kernel
from grasp_kernels.triton.losses import ROWS, TILES, sum_feature_tiles_kernel
from grasp_kernels.triton.philox_words import philox_words_kernel

DTYPES = {"float32": "*fp32", "bfloat16": "*bf16"}
NEWTON = {"4x2": (4, 2), "20x8": (20, 8), "64x64": (64, 64)}
"""State and action features: one of each padded size."""
ITEMSIZE = {"float32": 4, "bfloat16": 2, "int32": 4}

# Arguments that are not integers: pointers of the storage dtype, pointers of one type, and floats.
STORAGE = {
    "trajectory", "prediction", "goal", "state_gradient", "cotangent", "prediction_gradient",
    "trajectory_gradient", "actions", "gradient", "low", "high", "noise",
}  # fmt: skip
FLOAT32 = (
    "coefficients", "feature_weight", "time_weight", "dynamics", "goal_error", "dynamics_cotangent",
    "goal_cotangent", "first_moment", "second_moment", "lr", "dynamics_shares", "goal_shares",
)  # fmt: skip
POINTERS = {**dict.fromkeys(FLOAT32, "*fp32"), "plan_ids": "*i64", "out": "*i32"}
FLOATS = {
    "state_gradient_scale", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "epsilon",
    "inverse_correction1", "inverse_correction2",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel. `elements` and `rows` are those of its tile.

    An element of an MLP kernel is a hidden unit of a row: `rows` times the hidden units.
    """

    name: str
    dtype: str
    kernel: Any
    elements: int
    rows: int
    warps: int
    constants: Mapping[str, Any] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    types: Mapping[str, str] = field(default_factory=dict)
    """Types of arguments that are not those of STORAGE, POINTERS and FLOATS."""
    launch: Mapping[str, Any] = field(default_factory=lambda: configs.OPTIONS)

    def source(self) -> ASTSource:
        """The kernel with its types, constants and alignments, ready for `triton.compile`."""
        signature: dict[str, str] = {}
        constants: dict[tuple[int], Any] = {}
        attributes: dict[tuple[int], list[list[Any]]] = {}
        for index, name in enumerate(self.kernel.arg_names):
            if name in self.constants or name in self.absent:
                signature[name] = "constexpr"
                constants[(index,)] = self.constants.get(name)
            elif name in self.types:
                signature[name] = self.types[name]
                if signature[name].startswith("*"):
                    attributes[(index,)] = [["tt.divisibility", configs.ALIGNMENT]]
            elif name in STORAGE or name in POINTERS:
                signature[name] = DTYPES[self.dtype] if name in STORAGE else POINTERS[name]
                attributes[(index,)] = [["tt.divisibility", configs.ALIGNMENT]]
            else:
                signature[name] = "fp32" if name in FLOATS else "i32"
        return ASTSource(self.kernel, signature, constants, attributes)

    def options(self) -> dict[str, Any]:
        return {"num_warps": self.warps, **self.launch}


def variants(features: int = 1024) -> list[Variant]:
    """All of them, for rows of `features` numbers."""
    found = [v for dtype in DTYPES for v in _of_dtype(dtype, features)]
    tile = configs.tile_for(features)
    found.append(_tiled("philox_words", "int32", philox_words_kernel, features, tile))
    constants = {"ROWS": ROWS, "TILES": TILES}
    sums = sum_feature_tiles_kernel
    found.append(Variant("sum_feature_tiles", "float32", sums, ROWS * TILES, ROWS, 4, constants))
    found += [
        _mlp(kernel, size, dtype)
        for dtype in DTYPES
        for size in mlp_variants.MODELS
        for kernel in mlp_variants.KERNELS
    ]
    return found + [_newton(size) for size in NEWTON]


def _newton(size: str) -> Variant:
    """With bounds, without weights; an element is one of a D by D matrix."""
    kernel, (features, width) = lifted_newton_step_kernel, NEWTON[size]
    rows, columns = padded(features), padded(width)
    constants = {
        "FEATURES": features, "ACTIONS": width, "D": rows, "A": columns, "JITTER": JITTER,
    }  # fmt: skip
    types = dict.fromkeys(kernel.arg_names, "*fp32")
    types |= dict.fromkeys(("steps", "hold", "solves"), "i32")
    types |= dict.fromkeys(("max_action_step", "max_state_step"), "fp32")
    launch = newton_options(rows, columns)
    return Variant(
        f"lifted_newton_step_{size}", "float32", kernel, rows * rows, 1, launch.pop("num_warps"),
        constants, frozenset({"goal_weight"}), types, launch,
    )  # fmt: skip


def _mlp(name: str, size: str, dtype: str) -> Variant:
    kernel, model = mlp_variants.KERNELS[name], mlp_variants.MODELS[size]
    tile = mlp_variants.tile_of(name, dtype)
    launch = tile.launch()
    constants: dict[str, Any] = {key: launch.pop(key) for key in ("ROWS", "COLUMNS", "DEPTH")}
    constants |= {"MODEL": model, **mlp_variants.FLAGS.get(name, {})}
    types = dict.fromkeys(kernel.arg_names, "*fp32") | mlp_variants.TYPES
    types |= {"weights": DTYPES[dtype], "factors": DTYPES[dtype]}
    elements = tile.rows * mlp_variants.hidden_units(model)
    return Variant(
        f"{name}_{size}", dtype, kernel, elements, tile.rows, launch.pop("num_warps"), constants,
        frozenset(mlp_variants.ABSENT.get(name, ())), types, launch,
    )  # fmt: skip


def _of_dtype(dtype: str, features: int) -> list[Variant]:
    weights, options = "feature_weight time_weight", "feature_weight time_weight state_gradient"

    def tiled(name: str, kernel: Any, absent: str = "", noise: str = "none") -> Variant:
        tile = configs.tile_for(features, noise, ITEMSIZE[dtype])
        constants = {"NOISE": noise} if "NOISE" in kernel.arg_names else {}
        return _tiled(name, dtype, kernel, features, tile, absent, **constants)

    def action_step(name: str, absent: str = "") -> Variant:
        constants = {"BLOCK": BLOCK, "VECTOR": configs.ALIGNMENT // ITEMSIZE[dtype]}
        kernel = action_step_kernel
        return Variant(name, dtype, kernel, BLOCK, 1, WARPS, constants, frozenset(absent.split()))

    return [
        tiled("lifted_step_none", lifted_step_kernel, options),
        tiled("lifted_step_white", lifted_step_kernel, options, "white"),
        tiled("lifted_step_bridge", lifted_step_kernel, options, "bridge"),
        tiled("lifted_step_white_weighted", lifted_step_kernel, "", "white"),
        tiled("lifted_loss", lifted_loss_kernel, weights),
        tiled("lifted_loss_backward", lifted_loss_backward_kernel, weights),
        tiled("gaussian_noise_white", gaussian_noise_kernel, noise="white"),
        tiled("gaussian_noise_bridge", gaussian_noise_kernel, noise="bridge"),
        action_step("action_step_sgd", "first_moment second_moment"),
        action_step("action_step_adam"),
    ]


def _tiled(
    name: str,
    dtype: str,
    kernel: Any,
    features: int,
    tile: configs.Tile,
    absent: str = "",
    **constants: Any,
) -> Variant:
    """A variant of a kernel that works on tiles of ROWS by TILE."""
    itemsize = ITEMSIZE[dtype]
    aligned = features * itemsize % configs.ALIGNMENT == 0
    launch = configs.launch(features, tile)
    constants |= {key: launch[key] for key in ("ROWS", "TILE", "WHOLE")}
    constants["VECTOR"] = configs.ALIGNMENT // itemsize if aligned else 1
    elements = tile.rows * tile.features
    absences = frozenset(absent.split())
    return Variant(name, dtype, kernel, elements, tile.rows, tile.warps, constants, absences)
