"""Cases on a GPU: CUDA events around captured graphs, with rotating buffers.

NOT YET RUN ON A GPU. It is written for one and read against torch's documentation; what has been
tested is its arithmetic and the order of its calls, with a stand-in for `torch.cuda`
(tests/bench/test_gpu.py). Believe no number of it before someone has run it.

A graph holds `nodes` calls one after the other, so that a replay's launch is spread over them, and
its time is that of two events around it over the number of calls. Warm: all calls use the same
operands. Cold: each call uses another copy, and the copies together are larger than twice the L2
cache, so that a copy has been evicted when its turn comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import ceilings
from .cases import Case
from .gate import Gate, Verdict
from .runner import Row, Settings, counted, timed
from .timing import Timing
from .variants import WORKLOADS, Variant, variants
from .workload import Operands, fresh

NODES = 20  # calls per graph, at most; large ones take fewer
WARM_UP = 3  # on a side stream, before a capture: compile, allocate
COPIES = 64  # at most
SIZES = (2**20, 2**24, 2**28, 2**32)  # bytes that a copy moves, for the ceilings
SQUARE = 4096  # of the product, float32 without TF32: torch's default


class GPURunner:
    """Runs cases on the current CUDA device; `rows` as `CPURunner.rows`."""

    def __init__(self, settings: Settings, device: torch.device | None = None) -> None:
        self.settings = settings
        self.device = torch.device("cuda") if device is None else device
        properties = torch.cuda.get_device_properties(self.device)
        self.name = str(properties.name)
        self.l2 = int(getattr(properties, "L2_cache_size", 0)) or 64 * 2**20
        self.ceilings = self._ceilings()

    def _ceilings(self) -> ceilings.Ceilings:
        """Copy, triad, product and the latency of a node of a graph."""
        times: dict[str, Timing] = {}
        for size in SIZES:
            wanted = ceilings.functions(self.device, [size], SQUARE)
            for name, run in wanted.items():
                if name not in times:
                    graph = capture([run] * NODES)
                    times[name] = time_graph(graph, NODES, self.settings.rounds)
        return ceilings.summarise(str(self.device), None, times, SQUARE)

    def rows(self, case: Case) -> list[Row]:
        workload = WORKLOADS[case.op]
        operands = workload.operands(case, self.device)
        cost = workload.cost(case)
        compile = self.settings.compile and (case.quick_compiled or not self.settings.quick)
        gate = Gate(case, workload, operands)
        rows = []
        for variant in variants(case, self.device, compile=compile):
            verdict = gate.judge(variant.run, own_noise=variant.own_noise)
            row = self._row(case, variant.backend, verdict)
            counted(row, cost, case.parts)
            rows.append(row)
            if not verdict.green:
                continue
            try:
                warm = self._measure(variant, [operands])
                cold = self._measure(variant, [operands] * self._copies(operands))
            except RuntimeError as error:  # a call that cannot be captured
                row.gate = f"not run: {str(error).strip().splitlines()[0][:200]}"
                continue
            timed(row, cost, case.parts, self.ceilings, warm, cold)
            row.rounds = row.cold_rounds = self.settings.rounds
        return rows

    def _copies(self, operands: Operands) -> int:
        """How many copies of the operands are larger than twice the L2 cache."""
        return copies(self.l2, operands)

    def _measure(self, variant: Variant, originals: Sequence[Operands]) -> Timing:
        """Every call of the graph on the next copy; one copy is used by all calls."""
        given = [fresh(operands) for operands in originals]
        count = max(NODES, len(given))
        calls = [partial(variant.run, given[i % len(given)]) for i in range(count)]
        return time_graph(capture(calls), count, self.settings.rounds)

    def _row(self, case: Case, backend: str, verdict: Verdict) -> Row:
        return Row(
            case=case.name,
            op=case.op,
            shape=str(case.shape),
            dtype=str(case.dtype).removeprefix("torch."),
            backend=backend,
            device=str(self.device),
            threads=None,
            gate=verdict.text,
            gate_error=verdict.error if verdict.error < float("inf") else None,
            gate_tolerance=verdict.tolerance,
            part=case.part,
        )


def copies(l2: int, operands: Mapping[str, Any]) -> int:
    """How many copies of the operands together exceed twice `l2` bytes; 2 to COPIES."""
    size = sum(v.numel() * v.element_size() for v in operands.values() if isinstance(v, Tensor))
    return max(2, min(COPIES, 2 * l2 // max(size, 1) + 1))


def capture(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """One graph with these calls in order, after a warm-up on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            for call in dict.fromkeys(calls):
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def time_graph(graph: Any, nodes: int, rounds: int) -> Timing:
    """Seconds per call: a replay between two events, over `nodes`, after an untimed one."""
    graph.replay()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / nodes)
    return Timing.of(seconds)
