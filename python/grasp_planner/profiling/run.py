"""A profile of one plan: timed bare, then timed by phases, counted, and traced.

Instruments cost time, so none of them is on while another measures. Times are of whole plans. What
is per iteration, or per sync step, is the difference between short plans that differ in nothing but
the number of these.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from grasp_planner.config import GraspConfig
from grasp_planner.inputs import check_problem
from grasp_planner.models import KernelModel
from grasp_planner.plan import Plan
from grasp_planner.planner import GraspPlanner
from grasp_planner.profiling.achieved import Achieved, achieved
from grasp_planner.profiling.counting import Counts
from grasp_planner.profiling.gpu_report import SamplerReport
from grasp_planner.profiling.nvml import GpuSampler
from grasp_planner.profiling.phases import LOOP, PHASES, REST, Stopwatch, around
from grasp_planner.whole_plan import WHOLE_PLAN

SHORT, LONGER = 4, 8  # iterations (or sync steps) of the plans whose counts are compared
ACTIVITIES = (ProfilerActivity.CPU, ProfilerActivity.CUDA)
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipModuleLaunchKernel")
NO_GPU = "does not apply: the plan ran on a CPU"


@dataclass(frozen=True)
class Phase:
    """A part of a plan: wall time per plan, its share, and how often it was entered."""

    name: str
    seconds: float
    share: float
    calls: int


@dataclass(frozen=True)
class Requests:
    """What one more iteration (or sync step) asks of torch.

    `operators`: operator calls; `by_name`: the same by name, the most frequent first;
    `allocations`: storages made; `launches`: GPU kernels, None on a CPU, which has none.
    """

    operators: float
    allocations: float
    launches: float | None
    by_name: dict[str, float]


@dataclass(frozen=True)
class Profile:
    """What a plan costs. Times are wall times of the host, in seconds; sizes are bytes.

    Attributes:
        seconds: a whole plan of all problems without any instrument, median of `repeats`.
        seconds_low, seconds_high: the fastest and the slowest of them.
        phases: where the time goes; on a GPU every phase waits for the device, so that its time is
            its own, and the sum is more than a plan takes.
        achieved: bandwidth and rate of the planner's kernels, and the ceilings.
        iteration, sync_step: what one more of them asks of torch.
        host_reads: reads in the loop that would make the host wait for a device, by name.
        device_waits: waits that CUDA itself reports for the loop; None on a CPU.
        peak_bytes: the most bytes of tensors alive at once in a short plan, the model's and the
            inputs' left out. Scratch inside native kernels is not a tensor.
        gpu: what NVML saw of the device during the timed plans.
        not_applicable: row -> why it has no number here.
    """

    world_model: str
    device: str
    backend: str
    path: str
    threads: int
    torch: str
    problems: int
    candidates: int
    horizon: int
    iterations: int
    repeats: int
    seconds: float
    seconds_low: float
    seconds_high: float
    phases: tuple[Phase, ...]
    achieved: tuple[Achieved, ...]
    iteration: Requests
    sync_step: Requests
    host_reads: dict[str, int]
    device_waits: int | None
    peak_bytes: int
    gpu: SamplerReport
    energy_per_plan_j: float | None
    trace: str
    not_applicable: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All but NVML's single readings, of which there are thousands."""
        found = asdict(self)
        for device in found["gpu"]["devices"]:
            del device["readings"]
        return found


def profile(
    world_model: Any,
    config: GraspConfig,
    start: Tensor,
    goal: Tensor,
    *,
    name: str,
    trace: Path,
    repeats: int = 5,
    progress: Callable[[str], object] = lambda what: None,
) -> Profile:
    """Plans `start` to `goal` several times over, and says what it cost.

    Args:
        world_model, config, start, goal: as for `GraspPlanner`.
        name: of the world model, for the report.
        trace: where to write the trace, in Chrome's format (chrome://tracing, ui.perfetto.dev).
        repeats: timed plans, at least 1.
        progress: called with what is being done.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    on_gpu = start.device.type == "cuda"
    short = replace(config, iterations=SHORT, sync_every=0, final_sync_steps=SHORT)

    def plan(settings: GraspConfig) -> Plan:
        found = GraspPlanner(world_model, settings).plan(start, goal)
        if on_gpu:
            torch.cuda.synchronize()
        return found

    progress("warming up")
    plan(short)
    progress(f"timing {repeats} plans")
    seconds = []
    with GpuSampler(gpu_of(start)) as sampler:
        for _ in range(repeats):
            begin = time.perf_counter()
            found = plan(config)
            seconds.append(time.perf_counter() - begin)
    progress("timing the phases")
    stopwatch = Stopwatch(torch.cuda.synchronize if on_gpu else None)
    begin = time.perf_counter()
    with around(PHASES, stopwatch.phase):
        plan(config)
    phases = shares(stopwatch, time.perf_counter() - begin)
    progress("measuring ceilings")
    problem = check_problem(world_model, config, start, goal, None, None)
    model = GraspPlanner(world_model, config)._open(problem)
    whole = model.path == WHOLE_PLAN
    dynamics = model.dynamics if whole and isinstance(model, KernelModel) else None
    rates = achieved(config, start, dynamics, stopwatch.seconds, stopwatch.calls)

    progress("counting")
    few = count(plan, short, on_gpu)
    iterations = count(plan, replace(short, iterations=LONGER), on_gpu)
    steps = count(plan, replace(short, final_sync_steps=LONGER), on_gpu)
    waits = cuda_waits(lambda: plan(short)) if on_gpu else None
    progress("tracing")
    trace_plan(lambda: plan(replace(short, final_sync_steps=1)), trace, on_gpu)

    reports = sampler.report
    energies = [d.energy_j for d in reports.devices if d.energy_j is not None] if on_gpu else []
    return Profile(
        world_model=name,
        device=torch.cuda.get_device_name(start.device) if on_gpu else "cpu",
        backend=found.backend,
        path=found.path,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        problems=len(start),
        candidates=config.candidates,
        horizon=config.horizon,
        iterations=config.iterations,
        repeats=repeats,
        seconds=statistics.median(seconds),
        seconds_low=min(seconds),
        seconds_high=max(seconds),
        phases=phases,
        achieved=rates,
        iteration=requests(few, iterations),
        sync_step=requests(few, steps),
        host_reads=dict(few.reads),
        device_waits=waits,
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else few.peak_bytes,
        gpu=reports,
        energy_per_plan_j=sum(energies) / repeats if energies else None,
        trace=trace.name,
        not_applicable={} if on_gpu else dict.fromkeys(GPU_ROWS, NO_GPU),
    )


def gpu_of(tensor: Tensor) -> list[str] | None:
    """The GPU that holds a tensor, as NVML knows it; None (all there are) for a CPU's."""
    if tensor.device.type != "cuda":
        return None
    return [str(torch.cuda.get_device_properties(tensor.device).uuid)]


GPU_ROWS = (
    "kernel launches per iteration",
    "waits reported by CUDA",
    "power, energy, utilisation, clocks, throttling",
)


def shares(stopwatch: Stopwatch, total: float) -> tuple[Phase, ...]:
    """All phases and what is left, the longest first."""
    rest = total - sum(stopwatch.seconds.values())
    parts = [(n, s, stopwatch.calls[n]) for n, s in stopwatch.seconds.items()] + [(REST, rest, 1)]
    found = [Phase(name, seconds, seconds / total, calls) for name, seconds, calls in parts]
    return tuple(sorted(found, key=lambda phase: -phase.seconds))


def count(plan: Callable[[GraspConfig], object], config: GraspConfig, on_gpu: bool) -> Counts:
    """What the loop of one plan asks of torch, and on a GPU how many kernels the plan launches."""
    counts = Counts()
    with around(LOOP, counts.loop), counts.watching():
        plan(config)
    if on_gpu:
        with torch.profiler.profile(activities=ACTIVITIES) as profiler:
            plan(config)
        counts.launches = sum(event.name.startswith(LAUNCHES) for event in profiler.events())
    return counts


def requests(few: Counts, many: Counts) -> Requests:
    """One more iteration's share of the difference."""
    per = 1 / (LONGER - SHORT)
    more = many.operators - few.operators
    launched = few.launches is not None and many.launches is not None
    return Requests(
        operators=per * sum(more.values()),
        allocations=per * (many.allocations - few.allocations),
        launches=per * (many.launches - few.launches) if launched else None,  # type: ignore[operator]
        by_name={name: per * n for name, n in more.most_common()},
    )


def cuda_waits(plan: Callable[[], object]) -> int:
    """How often CUDA made the host wait in the loop, as torch reports it."""
    waits = 0

    @contextlib.contextmanager
    def loop(name: str) -> Iterator[None]:
        nonlocal waits
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits += sum("synchroniz" in str(w.message) for w in seen)

    with around(LOOP, loop):
        plan()
    return waits


def trace_plan(plan: Callable[[], object], path: Path, on_gpu: bool) -> None:
    """Writes the trace of one plan, its phases named."""
    activities = ACTIVITIES if on_gpu else ACTIVITIES[:1]
    with (
        around(PHASES, Stopwatch().phase),
        torch.profiler.profile(activities=activities) as profiler,
    ):
        plan()
    profiler.export_chrome_trace(str(path))
