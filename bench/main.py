"""`grasp bench` from its parsed arguments to the files: what runs, in which order."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import ceilings, peers, scaling
from .cases import Case, select
from .page import write_page
from .report import Report, print_report
from .runner import CPURunner, Settings, run_all
from .variants import absent

RED, USAGE, INTERRUPTED = 1, 2, 130  # exit status
QUICK_SECONDS = 40.0
"""After these, --quick begins no further case."""


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes; Ctrl-C keeps what was measured."""
    began = time.perf_counter()
    console = Console(width=None if sys.stdout.isatty() else 190)
    cases = select(args.case, quick=args.quick)
    if args.list:
        for case in cases:
            console.print(case.name, highlight=False)
        return 0
    if not cases:
        print(f"grasp bench: no case contains {args.case!r}; see --list", file=sys.stderr)
        return USAGE
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"grasp bench: --out {args.out}: {error}", file=sys.stderr)
        return USAGE
    report = Report(settings_of(args), absent=absent())
    threads_before = torch.get_num_threads()
    deadline = began + QUICK_SECONDS if args.quick else float("inf")
    try:
        measure_all(report, cases, args, deadline, console)
    except KeyboardInterrupt:
        report.interrupted = True
        console.print("[yellow]interrupted; what was measured follows[/]")
    finally:
        torch.set_num_threads(threads_before)
        report.write(args.out)
    write_page(report, args.out / "bench.html")
    print_report(console, report)
    console.print(f"written to {args.out}: bench.json, bench.csv, bench.html", highlight=False)
    if report.interrupted:
        return INTERRUPTED
    return RED if report.red else 0


def settings_of(args: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {"threads": args.threads, "compile": not args.no_compile}
    for name in ("rounds", "cold_rounds"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    if "rounds" in given:
        given["least_rounds"] = min(given["rounds"], Settings.least_rounds)
    return Settings.hurried(**given) if args.quick else Settings(**given)


def measure_all(
    report: Report,
    cases: Sequence[Case],
    args: argparse.Namespace,
    deadline: float,
    console: Console,
) -> None:
    """Ceilings first, then cases, peers and, if asked, the sweeps; into `report` as they come."""
    settings = report.settings
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        bar = progress.add_task("ceilings", total=len(cases) + len(settings.threads))
        by_threads = {}
        for threads in settings.threads:
            by_threads[threads] = ceilings.on_cpu(threads, min(settings.rounds, 5))
            report.ceilings.append(by_threads[threads])
            progress.advance(bar)
        runner = CPURunner(settings, by_threads)
        progress.update(bar, description=cases[0].name)
        for index, (case, rows) in enumerate(run_all(runner, cases, deadline)):
            report.rows += rows
            if not sys.stderr.isatty():
                print(f"{index + 1}/{len(cases)} {case.name}", file=sys.stderr)
            following = cases[index + 1].name if index + 1 < len(cases) else "done"
            progress.update(bar, advance=1, description=following)
        if torch.cuda.is_available():
            from .gpu import GPURunner

            gpu = GPURunner(settings)
            report.ceilings.append(gpu.ceilings)
            for _, rows in run_all(gpu, cases, deadline):
                report.rows += rows
        if not args.no_peers and args.case in peers.CASE.name and time.perf_counter() < deadline:
            report.rows += peers.rows(settings, report.absent)
        if args.scaling if args.scaling is not None else not args.quick:
            for sweep in (sweep for sweep in scaling.SWEEPS if args.case in sweep.case(1).name):
                progress.update(bar, description=sweep.name)
                report.scaling.append(scaling.measured(sweep).as_json())
