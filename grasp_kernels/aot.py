"""Compile every GPU kernel for named GPUs, on any machine, and say what came out.

    python -m grasp_kernels.aot                            every kernel for every target, a table
    python -m grasp_kernels.aot --target sm_90 --json      one target, JSON on stdout
    python -m grasp_kernels.aot --kernel lifted_step       kernels whose name contains this

Nothing is run and no GPU is needed. A kernel is compiled as its launcher would for aligned,
contiguous tensors with rows of `--features` numbers; 1024 fill whole tiles, without a mask.

instructions_per_element is a static count: all instructions of the kernel that issue, divided by
the elements of a tile per thread. A kernel without loops runs each of them once. Where there is a
loop (over the modes of the bridge, over feature tiles), its body is counted once there, and by
itself in loop_instructions_per_element: K trips run K - 1 times that on top.

An MLP kernel is loops within loops, and its elements are the hidden units of its rows: there the
count per element says how much code there is, not how much is run. The same holds for
`lifted_newton_step`, whose elements are those of a D by D matrix. For kernels that are whole
iterations, or half of one of second order, a second table has the bytes and operations of an
iteration and the time that they bound (aot_mlp.py, aot_newton.py).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass

from grasp_kernels import aot_mlp


@dataclass(frozen=True)
class Target:
    """A GPU to compile for, and what one of its multiprocessors holds."""

    backend: str
    arch: int | str
    warp_size: int
    max_warps: int
    max_blocks: int
    shared_bytes: int
    shared_reserved: int
    registers: int  # 32-bit, per lane of a partition: what its resident warps share
    register_granularity: int
    partitions: int = 4


# NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the
# occupancy calculator: registers go to warps 256 at a time, from the quarter of the file that their
# partition owns (512 per lane); 1 KiB of shared memory per block is the system's.
# AMD: LLVM, AMDGPUBaseInfo.cpp: 4 SIMDs, each 512 registers and 8 waves; 16 work-groups of several
# waves per compute unit.
TARGETS = {
    "sm_80": Target("cuda", 80, 32, 64, 32, 164 << 10, 1024, 512, 8),
    "sm_90": Target("cuda", 90, 32, 64, 32, 228 << 10, 1024, 512, 8),
    "sm_100": Target("cuda", 100, 32, 64, 32, 228 << 10, 1024, 512, 8),
    "sm_120": Target("cuda", 120, 32, 48, 24, 100 << 10, 1024, 512, 8),
    "gfx942": Target("hip", "gfx942", 64, 32, 16, 64 << 10, 0, 512, 8),
}


@dataclass(frozen=True)
class Report:
    """One kernel, compiled for one target."""

    name: str
    target: str
    dtype: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: int
    elements_per_thread: int
    instructions_per_element: float
    loop_instructions_per_element: float
    global_access_bits: dict[str, int]
    """How many bulk accesses (loads and stores of tiles) have each width."""
    narrowest_bulk_access_bits: int
    scalar_accesses: int
    row_accesses: int
    gather_accesses: int
    warps: int
    occupancy: float
    occupancy_limit: str
    products: dict[str, int]
    """How many instructions of each kind multiply: of tensor or matrix cores, or multiply-adds."""
    scalar_spills: int
    """AMD: scalar registers kept in lanes of vector registers, without memory."""
    l2_bytes_per_iteration: int
    l2_weight_bytes_per_iteration: int
    device_bytes_per_iteration: float
    operations_per_iteration: int
    """These four of one plan, of kernels in the second table; 0 for others."""
    bound_us: dict[str, float]
    """Time of an iteration of `aot_mlp.PLANS` plans by GPU: a bound, not a measurement."""


def occupancy(target: Target, registers: int, shared_bytes: int, warps: int) -> tuple[float, str]:
    """Resident warps over the most a multiprocessor holds, and what limits them. Theoretical."""
    granularity = target.register_granularity
    allocated = -(-max(registers, 1) // granularity) * granularity
    blocks = {
        "registers": target.registers // allocated * target.partitions // warps,
        "shared memory": target.shared_bytes // max(1, shared_bytes + target.shared_reserved),
        "blocks": target.max_blocks if warps > 1 or target.backend == "cuda" else target.max_warps,
        "warps": target.max_warps // warps,
    }
    limit = min(blocks, key=lambda name: (blocks[name], name != "warps"))
    return blocks[limit] * warps / target.max_warps, limit


def compile_variant(name: str, dtype: str, target_name: str, features: int) -> Report:
    """Compiles one variant for one target and reads the result."""
    import triton
    from triton.backends.compiler import GPUTarget

    from grasp_kernels.triton import disassembly
    from grasp_kernels.triton.variants import variants

    target = TARGETS[target_name]
    variant = next(v for v in variants(features) if (v.name, v.dtype) == (name, dtype))
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    compiled = triton.compile(variant.source(), target=gpu, options=variant.options())
    kinds = disassembly.access_kinds(compiled.asm["ttir"], variant.elements, variant.rows)
    if target.backend == "cuda":
        listing = disassembly.read_nvidia(compiled.asm["cubin"], compiled.asm["ptx"], kinds)
    else:
        listing = disassembly.read_amd(compiled.asm["amdgcn"], kinds)

    def count(kind: str) -> int:
        return sum(n for (found, _), n in listing.accesses.items() if found == kind)

    bulk = {bits: n for (kind, bits), n in sorted(listing.accesses.items()) if kind == "bulk"}
    per_thread = max(1, variant.elements // (target.warp_size * variant.warps))
    shared = compiled.metadata.shared
    share, limit = occupancy(target, listing.registers, shared, variant.warps)
    counted = aot_mlp.counts(name, dtype)
    needs = counted.operations, counted.l2_weight_bytes, counted.device_bytes
    return Report(
        name=name,
        target=target_name,
        dtype=dtype,
        registers=listing.registers,
        spill_bytes=listing.spill_bytes,
        shared_bytes=shared,
        instructions=listing.instructions,
        elements_per_thread=per_thread,
        instructions_per_element=round(listing.instructions / per_thread, 2),
        loop_instructions_per_element=round(listing.loop_instructions / per_thread, 2),
        global_access_bits={str(bits): n for bits, n in bulk.items()},
        narrowest_bulk_access_bits=min(bulk, default=0),
        scalar_accesses=count("scalar"),
        row_accesses=count("row"),
        gather_accesses=count("gather"),
        warps=variant.warps,
        occupancy=round(share, 3),
        occupancy_limit=limit,
        products=dict(sorted(listing.products.items())),
        scalar_spills=listing.scalar_spills,
        l2_bytes_per_iteration=counted.l2_bytes,
        l2_weight_bytes_per_iteration=counted.l2_weight_bytes,
        device_bytes_per_iteration=counted.device_bytes,
        operations_per_iteration=counted.operations,
        bound_us=aot_mlp.bounds(*needs, dtype) if counted.operations else {},
    )


Task = tuple[str, str, str]


def compile_all(
    targets: Iterable[str], kernel: str = "", features: int = 1024, jobs: int = 1
) -> tuple[list[Report], dict[Task, Exception]]:
    """Reports in a fixed order, and failures by (name, dtype, target). Progress goes to stderr."""
    from grasp_kernels.triton.variants import variants

    tasks = [(v.name, v.dtype, t) for t in targets for v in variants(features) if kernel in v.name]
    done: dict[Task, Report] = {}
    failed: dict[Task, Exception] = {}
    with contextlib.ExitStack() as stack:
        for number, (task, result) in enumerate(_results(tasks, features, jobs, stack), start=1):
            try:
                done[task] = result()
                state = "ok"
            except Exception as error:
                failed[task], state = error, "FAILED"
            print(f"[{number}/{len(tasks)}] {' '.join(task)} {state}", file=sys.stderr, flush=True)
    return [done[task] for task in tasks if task in done], failed


def _results(
    tasks: list[Task], features: int, jobs: int, stack: contextlib.ExitStack
) -> Iterator[tuple[Task, Callable[[], Report]]]:
    """Each task, as it is finished, with the function that returns its report or raises."""
    if jobs == 1:
        for task in tasks:
            yield task, functools.partial(compile_variant, *task, features)
        return
    spawned = multiprocessing.get_context("spawn")  # torch has threads, which a fork would lose
    pool = stack.enter_context(ProcessPoolExecutor(max_workers=jobs, mp_context=spawned))
    futures = {pool.submit(compile_variant, *task, features): task for task in tasks}
    for future in as_completed(futures):
        yield futures[future], future.result


HEADER = (
    f"{'kernel':<28}{'dtype':<10}{'target':<8}{'regs':>5}{'spill':>7}{'shared':>8}"
    f"{'instr/el':>10}{'+/trip':>8}{'bulk access bits':>32}{'scalar':>8}{'occupancy':>22}"
)


def table_row(report: Report) -> str:
    widths = ", ".join(f"{n} x {bits}" for bits, n in report.global_access_bits.items())
    trip = (
        f"{report.loop_instructions_per_element:.1f}"
        if report.loop_instructions_per_element
        else ""
    )
    return (
        f"{report.name:<28}{report.dtype:<10}{report.target:<8}{report.registers:>5}"
        f"{report.spill_bytes:>7}{report.shared_bytes:>8}{report.instructions_per_element:>10.1f}"
        f"{trip:>8}{widths:>32}{report.scalar_accesses:>8}"
        f"{f'{report.occupancy:.0%} ({report.occupancy_limit})':>22}"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m grasp_kernels.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target",
        action="append",
        choices=TARGETS,
        metavar="NAME",
        help=f"one of {', '.join(TARGETS)}; may be repeated; default all",
    )
    parser.add_argument("--kernel", default="", metavar="TEXT", help="part of a kernel's name")
    parser.add_argument("--features", type=int, default=1024, help="numbers in a row (1024)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout, nothing else")
    options = parser.parse_args(arguments)
    if options.features < 1 or options.jobs < 1:
        parser.error("--features and --jobs must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # kernels must be compiled here, not interpreted
    try:
        import triton  # noqa: F401
    except ImportError:
        print("error: the triton package is not installed, nothing to compile", file=sys.stderr)
        return 2
    targets = options.target or list(TARGETS)
    reports, failed = compile_all(targets, options.kernel, options.features, options.jobs)
    if not reports and not failed:
        print(f"error: no kernel has {options.kernel!r} in its name", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        print(HEADER)
        for report in reports:
            print(table_row(report))
        for line in aot_mlp.table([(report.name, report.dtype) for report in reports]):
            print(line)
    for task, error in failed.items():
        print(f"error: {' '.join(task)}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
