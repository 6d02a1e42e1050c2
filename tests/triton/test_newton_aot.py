"""Budgets of the compiled Newton step, and the counts of the bounds of second order."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget

from grasp_kernels import aot, aot_mlp, aot_newton
from grasp_kernels.triton.mlp_variants import hidden, latent
from grasp_kernels.triton.variants import NEWTON, variants

pytestmark = pytest.mark.aot

NAMES = [f"lifted_newton_step_{size}" for size in NEWTON]
QUICK = [(NAMES[0], "sm_90"), (NAMES[1], "sm_100"), (NAMES[2], "sm_120"), (NAMES[0], "gfx942")]
SLOW = [(n, t) for n in NAMES for t in aot.TARGETS if (n, t) not in QUICK]


def check(name: str, target: str) -> None:
    report = aot.compile_variant(name, "float32", target, features=1024)
    assert report.spill_bytes == 0
    assert report.shared_bytes <= 32 << 10
    if target == "gfx942":  # whose matrix cores multiply float32 exactly
        assert "v_mfma" in report.products
    else:  # float32, and float64 where there are tensor cores for it
        assert {"FFMA"} <= set(report.products) <= {"FFMA", "DMMA"}, report.products


@pytest.mark.parametrize(("name", "target"), QUICK)
def test_budgets(name: str, target: str) -> None:
    check(name, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), SLOW)
def test_budgets_of_everything(name: str, target: str) -> None:
    check(name, target)


def test_every_kernel_has_a_budget() -> None:
    found = [v.name for v in variants() if v.name.startswith("lifted_newton_step")]
    assert found == NAMES


def test_no_product_is_rounded_and_divisions_are_those_of_float64() -> None:
    variant = next(v for v in variants() if v.name == NAMES[0])
    target = GPUTarget("cuda", 90, 32)
    ptx = triton.compile(variant.source(), target=target, options=variant.options()).asm["ptx"]
    assert "tf32" not in ptx
    assert set(re.findall(r"mma\.sync[\w.]*", ptx)) == {
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"
    }
    assert set(re.findall(r"\bdiv\.[\w.]*f\d+", ptx)) == {"div.rn.f64"}


SMALL = hidden(3, 2, [5, 7])


def test_operations_of_jacobians_equal_a_count_one_by_one() -> None:
    count = 0
    for inputs, outputs in ((5, 5), (5, 7), (7, 3)):  # the way there
        count += 2 * inputs * outputs
    for _ in range(3):  # features: a row of the last W, then to the first layer, then to all inputs
        count += 2 * 7 * 5
        count += 2 * 5 * 5
    assert 2 * aot_newton.products(SMALL) == count


def test_a_last_layer_that_is_not_elementwise_is_multiplied_too() -> None:
    model = latent(16, 1, [4])
    assert aot_newton.products(model) == 17 * 4 + 4 * 16 + 16 * (16 * 4 + 4 * 17)


def test_bytes_of_jacobians_equal_a_count_of_tensors() -> None:
    plans, steps = 6, 4  # 24 rows, two tiles of 16
    found = aot_newton.jacobian_counts(SMALL, steps, 16, 2, 64, plans)
    there, back = 5 * 5 + 5 * 7 + 7 * 3, 7 * 5 + 5 * 5
    weights = 2 * 2 * (there + 3 * (back + 7))
    assert found.l2_weight_bytes == weights // plans
    factors = 2 * 32 * (5 + 5 + 7 + 3 * (7 + 5))
    slopes = 4 * 32 * (5 + 7) * (1 + 3)
    assert found.l2_bytes == (weights + factors + slopes) // plans
    tensors = 4 * plans * steps * (3 + 2 + 3 + 3 * 3 + 3 * 2)
    constants = 4 * (5 + 5 + 3 + 3 + 5 + 7 + 3)
    assert found.device_bytes == pytest.approx((tensors + 2 * there + constants) / plans, abs=0.1)


def test_counts_of_a_newton_step_equal_a_count_one_by_one() -> None:
    features, width, steps, blocks = 6, 2, 5, 3
    found = aot_newton.newton_counts(features, width, steps, hold=2, solves=2)
    count = 0
    for _ in range(steps):  # L A, L B and L d; then A dx and B step
        count += features**3 + features**2 * width + features**2
        count += features**2 + features * width
    for _ in range(2):  # S S^T and S^T forces by blocks, elimination, substitution
        count += blocks * (features**2 * width + features * width)
        count += features**3 // 3 + features**2
    count += blocks * features * width
    assert found.operations == 2 * count
    given = [(steps + 1) * features, steps * width, steps * features, features, 1]
    given += [steps * features**2, steps * features * width]
    written = [steps * features, steps * width, 3]
    assert found.device_bytes == 4 * (sum(given) + sum(written))
    assert found.l2_bytes == 4 * blocks * features * width * (1 + 2 * 2 + 1)


def test_the_table_has_both() -> None:
    names = [("mlp_jacobians_256x2", "bfloat16"), ("lifted_newton_step_20x8", "float32")]
    lines = aot_mlp.table(names)
    for (name, dtype), line in zip(names, lines[3:], strict=False):
        count = aot_mlp.counts(name, dtype)
        assert line.split()[:3] == [name, dtype, str(count.operations)]
