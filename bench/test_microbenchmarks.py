"""The quick cases on the CPU, driven by pytest-benchmark, so that its compare and histogram work.

    make bench                                      a run, saved under out/benchmarks
    make bench BENCH="-k gaussian_noise"            some of it
    make bench BENCH="--benchmark-compare --benchmark-compare-fail=median:20%"     against the last
    make bench BENCH="--benchmark-histogram=out/benchmarks/histogram"              and drawn (SVG)

One thread, warm caches, the op and eager torch; each behind the gate of `grasp bench`, which has
the ceilings, the compiler and cold caches on top.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from grasp_bench.cases import Case, select
from grasp_bench.gate import GREEN, Gate
from grasp_bench.variants import WORKLOADS, variants
from grasp_bench.workload import fresh

CASES = select(quick=True)


@pytest.mark.parametrize("eager", [False, True], ids=["op", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(benchmark: Any, case: Case, eager: bool) -> None:
    torch.set_num_threads(1)
    device, workload = torch.device("cpu"), WORKLOADS[case.op]
    variant = variants(case, device, compile=False)[int(eager)]
    operands = workload.operands(case, device)
    verdict = Gate(case, workload, operands).judge(variant.run, own_noise=variant.own_noise)
    assert verdict.text == GREEN
    cost = workload.cost(case)
    benchmark.group = case.name
    benchmark.extra_info.update(
        backend=variant.backend,
        bytes=cost.bytes,
        operations=cost.operations,
        noise_operations=cost.noise,
        parts_per_launch=case.parts,
    )
    benchmark(partial(variant.run, fresh(operands)))
