"""Every case of the registry in small, behind its gate; and a gate that turns red when it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from grasp_bench import runner
from grasp_bench.cases import BATCH, CASES, Case, Shape, select
from grasp_bench.ceilings import Ceilings
from grasp_bench.gate import GREEN, Gate, standard_normal
from grasp_bench.variants import WORKLOADS, variants
from grasp_bench.workload import Operands, Results, fresh, widened

CPU = torch.device("cpu")
CEILINGS = {
    n: Ceilings("cpu", n, {1000: 1e9, 100000: 1e10}, {1000: 1e9}, 1e9, 1e-9) for n in (1, 2)
}


def tiny(case: Case) -> Case:
    small = Shape(3, 6, 5, 2, 8, 2) if case.shape.hidden else Shape(3, 6, 5)
    options = {k: 3 if isinstance(v, int) else v for k, v in case.options.items()}
    return replace(case, shape=small, options=options)


TINY = list({case.name: case for case in map(tiny, CASES)}.values())


def case_of(op: str, **options: Any) -> Case:
    return next(c for c in TINY if c.op == op and options.items() <= c.options.items())


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_every_case_is_green_without_compiler(case: Case) -> None:
    workload = WORKLOADS[case.op]
    gate = Gate(case, workload, workload.operands(case, CPU))
    for variant in variants(case, CPU, compile=False):
        verdict = gate.judge(variant.run, own_noise=variant.own_noise)
        assert verdict.text == GREEN, (variant.backend, verdict)
        assert verdict.error <= verdict.tolerance


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the same
@pytest.mark.filterwarnings("ignore:.*_prims_common.check:FutureWarning")  # the same
@pytest.mark.parametrize(
    "case", [c for c in TINY if "compiled" in c.baselines], ids=lambda case: case.name
)
def test_every_case_is_green_compiled(case: Case) -> None:
    workload = WORKLOADS[case.op]
    gate = Gate(case, workload, workload.operands(case, CPU))
    (variant,) = (v for v in variants(case, CPU) if v.backend == "compiled")
    verdict = gate.judge(variant.run, own_noise=True)
    assert verdict.text == GREEN, verdict


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_timing_can_repeat_a_call(case: Case) -> None:
    """In-place ops are called hundreds of times on the same operands: they must stay finite."""
    workload = WORKLOADS[case.op]
    for variant in variants(case, CPU, compile=False):
        given = fresh(workload.operands(case, CPU))
        for _ in range(60):
            results = variant.run(given)
        assert all(bool(torch.isfinite(r).all()) for r in results.values()), variant.backend


def test_names_are_unique_and_selectable() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.op for case in CASES} == WORKLOADS.keys()
    assert select("gaussian_noise bridge", quick=True) == [
        case for case in CASES if case.op == "gaussian_noise" and case.options["noise"] == "bridge"
    ]
    assert select("no such case") == []
    assert all(case.quick for case in select(quick=True))
    assert {case.op for case in select(quick=True)} == WORKLOADS.keys()


def test_counts_grow_with_the_shape() -> None:
    for case in TINY:
        cost, larger = (
            WORKLOADS[case.op].cost(c)
            for c in (case, replace(case, shape=replace(case.shape, plans=6)))
        )
        assert 0 < cost.bytes < larger.bytes
        assert cost.operations + cost.noise < larger.operations + larger.noise


def judged(case: Case, spoil: Callable[[Results], Results], *, own_noise: bool = False) -> str:
    workload = WORKLOADS[case.op]
    gate = Gate(case, workload, workload.operands(case, CPU))
    honest = variants(case, CPU, compile=False)[1 if own_noise else 0].run

    def wrong(given: Operands) -> Results:
        return spoil(honest(given))

    return gate.judge(wrong, own_noise=own_noise).text


def test_the_gate_sees_a_wrong_number() -> None:
    case = case_of("lifted_step_", noise="white")
    assert judged(case, lambda r: r) == GREEN

    def one_off(results: Results) -> Results:
        results["cotangent"][1, 2, 3] += 1e-4
        return results

    assert "cotangent is off by" in judged(case, one_off)
    assert "not finite" in judged(case, lambda r: {**r, "loss": r["loss"] / 0})
    assert "shape" in judged(case, lambda r: {**r, "loss": r["loss"][:1]})
    assert "expected" in judged(case, lambda r: {"loss": r["loss"]})


def test_the_gate_survives_a_variant_that_raises() -> None:
    def broken(results: Results) -> Results:
        raise RuntimeError("no such kernel\nand a long story")

    text = judged(case_of("lifted_loss"), broken)
    assert text == "failed: RuntimeError: no such kernel"


def test_the_gate_looks_at_the_noise_of_plain_torch() -> None:
    case = replace(case_of("gaussian_noise", noise="white"), shape=Shape(8, 50, 20))
    assert judged(case, lambda r: r, own_noise=True) == GREEN
    loud = judged(case, lambda r: {"noise": 1.2 * r["noise"]}, own_noise=True)
    assert "variance 1.4" in loud


def test_standard_normal() -> None:
    noise = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    assert standard_normal(noise, 20000) == ""
    assert "mean" in standard_normal(noise + 0.1, 20000)
    assert "variance" in standard_normal(noise * 1.1, 20000)
    assert "mean nan" in standard_normal(noise * torch.nan, 20000)
    assert standard_normal(torch.empty(0), 0) == ""


def test_fresh_operands_share_nothing_that_changes() -> None:
    case = case_of("mlp_lifted_plan_")
    given = WORKLOADS[case.op].operands(case, CPU)
    copy, wide = fresh(given), widened(given)
    copy["trajectory"].zero_()
    copy["state"]["step"] = 3
    assert bool(given["trajectory"].any())
    assert given["state"] == {}
    assert wide["trajectory"].dtype == wide["dynamics"].dtype == torch.float64


def test_a_red_gate_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("lifted_loss")
    workload = WORKLOADS[case.op]

    def wrong(case: Case, given: Operands) -> Results:
        results = workload.fused(case, given)
        wide = given["prediction"].dtype == torch.float64
        return results if wide else {**results, "loss": results["loss"] + 1}

    monkeypatch.setitem(WORKLOADS, case.op, replace(workload, fused=wrong))
    settings = runner.Settings(rounds=2, least_rounds=2, cold_rounds=0, compile=False)
    rows = runner.CPURunner(settings, CEILINGS).rows(case)
    assert [row.gate.split(":")[0] for row in rows] == ["failed", "green", "not run"]
    assert rows[0].median_ms is None
    assert rows[0].fraction_of_ceiling is None
    assert rows[1].median_ms > 0


def test_rows_are_of_one_part() -> None:
    case = case_of("mlp_lifted_plan_")
    settings = runner.Settings(
        rounds=3, least_rounds=3, cold_rounds=2, compile=False, threads=(1, 2), seconds=0.0
    )
    rows = runner.CPURunner(settings, CEILINGS, flush=runner.Flush(2**16)).rows(case)
    assert [(row.backend, row.threads) for row in rows[1:4]] == [
        (rows[0].backend, 2),
        ("eager", 1),
        ("eager", 2),
    ]
    cost, row = WORKLOADS[case.op].cost(case), rows[0]
    assert row.parts_per_launch == 3
    assert row.part == "iteration"
    assert row.bytes == pytest.approx(cost.bytes / 3)
    assert row.operations == pytest.approx(cost.operations / 3)
    seconds = 3e-3 * row.median_ms
    assert row.bandwidth_gb_per_s == pytest.approx(cost.bytes / seconds / 1e9)
    assert row.rate_gop_per_s == pytest.approx((cost.operations + cost.noise) / seconds / 1e9)
    assert row.of_product == pytest.approx(row.rate_gop_per_s)  # of 1e9 per second
    assert row.q1_ms <= row.median_ms <= row.q3_ms
    assert row.cold_median_ms > 0
    assert row.temporary_bytes > 0


def test_the_time_of_quick_is_kept() -> None:
    case = case_of("lifted_loss")
    fake = type("Fake", (), {"device": CPU, "rows": lambda self, case: pytest.fail("it ran")})()
    ((_, (row,)),) = runner.run_all(fake, [case], deadline=0.0)
    assert row.gate == "not run: the time of --quick was spent"
    assert row.median_ms is None


def test_rounds_fit_the_time() -> None:
    assert runner.rounds_for(0.01, 1.0, 5, 25) == 25
    assert runner.rounds_for(0.05, 1.0, 5, 25) == 10
    assert runner.rounds_for(9.0, 1.0, 5, 25) == 5
    assert BATCH.plans == 64
