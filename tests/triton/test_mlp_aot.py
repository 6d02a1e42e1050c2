"""Budgets of the compiled MLP kernels, why bfloat16 is right in them, the counts of their bound.

The interpreter computes bfloat16 wrongly, so as in test_bfloat16.py three facts stand in for it:

    1. The Triton IR of a kernel with bfloat16 weights is that of the same kernel with float32
       weights, operation by operation, but for conversions between the two.
    2. Weights and factors are all that is bfloat16: they are loaded and multiplied, with float32
       sums, and a factor is rounded once, when it is stored. Nothing else touches one.
    3. In PTX every conversion to bfloat16 rounds to nearest even.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

pytest.importorskip("triton")
import triton
from test_bfloat16 import operations, without_conversions
from triton.backends.compiler import GPUTarget

from grasp_kernels import aot, aot_mlp
from grasp_kernels.triton.mlp_variants import KERNELS, MODELS, STEPS, hidden
from grasp_kernels.triton.variants import variants

pytestmark = pytest.mark.aot

NAMES = [f"{kernel}_{size}" for kernel in KERNELS for size in MODELS]
QUICK = [
    ("mlp_lifted_plan_512x3", "bfloat16", "sm_90"),
    ("mlp_sync_512x3", "bfloat16", "sm_90"),
    ("mlp_lifted_plan_tdmpc2", "bfloat16", "sm_100"),
    ("mlp_lifted_plan_128x3", "float32", "sm_90"),
    ("mlp_rollout_128x3", "bfloat16", "gfx942"),
    ("mlp_jacobians_512x3", "bfloat16", "sm_90"),
    ("mlp_jacobians_128x3", "float32", "sm_90"),
]
EVERYTHING = [(n, d, t) for t in aot.TARGETS for n in NAMES for d in ("float32", "bfloat16")]
SLOW = [case for case in EVERYTHING if case not in QUICK]
TENSOR_CORES = {
    "sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "sm_120": "HMMA", "gfx942": "v_mfma",
}  # fmt: skip


def check(name: str, dtype: str, target: str) -> None:
    report = aot.compile_variant(name, dtype, target, features=1024)
    assert report.spill_bytes == 0
    assert report.shared_bytes <= aot.TARGETS[target].shared_bytes - 1024
    assert 0 < report.occupancy <= 1
    used = set(report.products)
    if dtype == "bfloat16":
        assert TENSOR_CORES[target] in used, report.products
        if target == "sm_90":
            assert "HMMA" not in used, report.products  # no product is left on the older path
    elif target != "gfx942":  # whose matrix cores multiply float32 exactly
        assert used == {"FFMA"}, report.products  # tensor cores would round to tf32


@pytest.mark.parametrize(("name", "dtype", "target"), QUICK)
def test_budgets(name: str, dtype: str, target: str) -> None:
    check(name, dtype, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "target"), SLOW)
def test_budgets_of_everything(name: str, dtype: str, target: str) -> None:
    check(name, dtype, target)


def test_every_kernel_has_a_budget() -> None:
    found = {(v.name, v.dtype) for v in variants() if v.name.startswith("mlp_")}
    assert found == {(name, dtype) for name, dtype, _ in EVERYTHING}


def compiled(name: str, weights: str) -> dict[str, str]:
    """The bfloat16 variant as it is launched, or the same with float32 weights."""
    found = next(v for v in variants() if (v.name, v.dtype) == (name, "bfloat16"))
    types = {**found.types, "weights": weights, "factors": weights}
    variant = dataclasses.replace(found, types=types)
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(variant.source(), target=target, options=variant.options()).asm


@pytest.mark.parametrize(
    ("kernel", "also"),
    [("mlp_lifted_plan", ()), ("mlp_jacobians", ("arith.extf",))],  # rows of W by a number each
)
def test_bfloat16_weights_are_float32_arithmetic_with_rounded_factors(
    kernel: str, also: tuple[str, ...]
) -> None:
    narrow, wide = compiled(f"{kernel}_128x3", "*bf16"), compiled(f"{kernel}_128x3", "*fp32")
    assert without_conversions(narrow["ttir"]) == without_conversions(wide["ttir"])

    lines = operations(narrow["ttir"])
    touching = [line for line in lines if re.search(r"xbf16|: bf16|to bf16", line)]
    allowed = ("tt.load", "tt.store", "tt.trans", "tt.dot", "arith.truncf", "arith.constant")
    allowed += also
    assert not [line for line in touching if not any(word in line for word in allowed)]
    products = [line for line in lines if "tt.dot " in line]
    assert products
    assert all(re.search(r"xbf16> \* tensor<.*xbf16> -> .*xf32>", line) for line in products)

    conversions = re.findall(r"^\s*(?:@%\w+ )?(cvt[\w.]*\.bf16(?:x2)?\.f32)", narrow["ptx"], re.M)
    assert conversions
    assert all(name.startswith("cvt.rn.bf16") for name in conversions)


SMALL = hidden(3, 2, [5, 7])
LAYERS = [(5, 5), (5, 7), (7, 3)]  # inputs and outputs of each


def test_operations_equal_a_count_one_by_one() -> None:
    steps, count = 4, 0
    for _ in range(steps):
        for inputs, outputs in LAYERS:  # the way there
            for _ in range(outputs):
                for _ in range(inputs):
                    count += 2
        for inputs, outputs in LAYERS[1:]:  # the way back, down to the sums of the first layer
            for _ in range(inputs):
                for _ in range(outputs):
                    count += 2
        for _ in range(2):  # its two columns of actions
            for _ in range(5):
                count += 2
    assert aot_mlp.operations_per_iteration(SMALL, steps) == count


def test_device_bytes_equal_a_count_of_tensors() -> None:
    plans, steps, iterations = 10, 4, 5
    trajectory, actions = plans * (steps + 1) * 3, plans * steps * 2
    inout = 2 * 4 * (trajectory + 3 * actions)
    once = 4 * plans * 3 + 4 * plans * 3 + 8 * plans  # goal, rates, plan ids
    sound, history = 2 * plans, 4 * iterations * plans
    weights = 2 * (5 * 5 + 5 * 7 + 7 * 3)
    constants = 4 * (5 + 5 + 3 + 3 + 5 + 7 + 3)
    total = inout + once + sound + history + weights + constants
    found = aot_mlp.device_bytes_per_iteration(SMALL, steps, 2, plans, iterations)
    assert found == pytest.approx(total / plans / iterations)


def test_the_bound_is_the_slowest_of_three() -> None:
    gpu = aot_mlp.GPUS["H100"]
    assert aot_mlp.bounds(gpu.float32, 0, 0, "float32", plans=2)["H100"] == 2e6
    assert aot_mlp.bounds(gpu.bfloat16, 0, 0, "bfloat16", plans=1)["H100"] == 1e6
    assert aot_mlp.bounds(1, 2 * gpu.l2, gpu.device_memory, "float32", plans=1)["H100"] == 2e6
    assert aot_mlp.bounds(1, 1, 3 * gpu.device_memory, "float32", plans=1)["H100"] == 3e6


def test_the_table_names_its_sources_and_says_what_it_is() -> None:
    lines = aot_mlp.table([("mlp_lifted_plan_128x3", "bfloat16"), ("lifted_loss", "float32")])
    text = "\n".join(lines)
    assert "a bound, not a measurement" in text
    assert "datasheet" in text
    assert "lifted_loss" not in text
    assert str(aot_mlp.operations_per_iteration(MODELS["128x3"], STEPS)) in text
    assert aot_mlp.table([("mlp_sync_128x3", "bfloat16")]) == []
