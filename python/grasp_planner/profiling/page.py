"""A profile as a table for the terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterator

from rich.table import Table

from grasp_planner.profiling.run import Profile, Requests

Row = tuple[str, str]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2024; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e3e6ea; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { background: #2f6f9f; height: .9rem; border-radius: 2px; min-width: 1px; }
.none { color: #6a737d; } p { max-width: 46rem; }
"""

SHOWN = 10  # operators, the most frequent
HOW = (
    "Plans were timed without any instrument; the phases in a plan of their own, with a stopwatch "
    "around the planner's calls, which costs a microsecond or two a call. Bandwidth and rate "
    "are the bytes and operations that the ops must move and do (grasp_kernels.costs), over "
    "the phase's time; copy and product were measured in the same run. What one more iteration "
    "or sync step asks of torch is the difference between short plans that differ in their number "
    "alone. Host reads are operators and Python calls in the loop that would make the host wait "
    "for a device."
)


def summary(profile: Profile) -> Iterator[Row]:
    """What was run, and what it took."""
    yield "world model", profile.world_model
    yield "path", profile.path
    yield "backend", profile.backend
    yield "device", f"{profile.device}, {profile.threads} CPU threads, torch {profile.torch}"
    plans = f"{profile.problems} problems x {profile.candidates} candidates"
    yield "plan", f"{plans}, horizon {profile.horizon}, {profile.iterations} iterations"
    low, high = 1e3 * profile.seconds_low, 1e3 * profile.seconds_high
    spread = f"median of {profile.repeats}, {low:.1f} to {high:.1f}"
    yield "time of a batch", f"{1e3 * profile.seconds:.1f} ms ({spread})"
    yield "iterations per second", f"{profile.iterations / profile.seconds:.1f} (syncs included)"


def counters(profile: Profile) -> Iterator[Row]:
    """What the loop asks of torch, and of a GPU where there is one."""
    yield "operator calls per iteration", f"{profile.iteration.operators:.1f}"
    yield "operator calls per sync step", f"{profile.sync_step.operators:.1f}"
    yield "allocations per iteration", f"{profile.iteration.allocations:.1f}"
    yield "allocations per sync step", f"{profile.sync_step.allocations:.1f}"
    reads = ", ".join(f"{name} x {count}" for name, count in profile.host_reads.items())
    yield "host synchronisations in the loop", reads or "0"
    for rate in profile.achieved:
        share = rate.bytes_per_second / rate.copy_bytes_per_second
        of_copy = f"{share:.2g} of a copy ({rate.copy_bytes_per_second / 1e9:.1f} GB/s)"
        yield f"{rate.phase}: bandwidth", f"{rate.bytes_per_second / 1e9:.3g} GB/s, {of_copy}"
        share = rate.operations_per_second / rate.product_operations_per_second
        product = rate.product_operations_per_second / 1e9
        of_product = f"{share:.2g} of a large product ({product:.0f} Gop/s)"
        yield f"{rate.phase}: rate", f"{rate.operations_per_second / 1e9:.3g} Gop/s, {of_product}"
    yield "peak of tensors", f"{profile.peak_bytes / 2**20:.2f} MiB"
    for name, request in (("iteration", profile.iteration), ("sync step", profile.sync_step)):
        if request.launches is not None:
            yield f"kernel launches per {name}", f"{request.launches:.1f}"
    if profile.device_waits is not None:
        yield "waits reported by CUDA", str(profile.device_waits)
    if profile.energy_per_plan_j is not None:
        yield "energy per batch", f"{profile.energy_per_plan_j:.3f} J"
    for device in profile.gpu.devices if not profile.not_applicable else ():
        yield from gpu_rows(device)
    yield from profile.not_applicable.items()
    if profile.gpu.reason:
        yield "NVML", profile.gpu.reason


def gpu_rows(device: object) -> Iterator[Row]:
    """What NVML said of one device; what it could not say is named."""
    name = getattr(device, "name", "GPU")
    for label, attribute, unit in (
        ("energy", "energy_j", "J"),
        ("energy from", "energy_source", ""),
        ("power, mean", "power_mean_w", "W"),
        ("power, most", "power_max_w", "W"),
        ("utilisation, mean", "gpu_utilisation_mean_percent", "%"),
        ("memory, most", "memory_peak_bytes", "bytes"),
        ("SM clock, mean", "sm_clock_mean_mhz", "MHz"),
        ("SM clock, least", "sm_clock_min_mhz", "MHz"),
        ("temperature, most", "temperature_max_c", "°C"),
    ):
        value = getattr(device, attribute)
        shown = value if isinstance(value, str) else f"{value:.1f} {unit}" if value else "not read"
        yield f"{name}: {label}", shown
    for attribute in ("throttle_reasons", "not_supported", "failed_queries"):
        for key, value in getattr(device, attribute).items():
            shown = f"{value:.0%} of samples" if isinstance(value, float) else str(value)
            yield f"{name}: {attribute.replace('_', ' ')}: {key}", shown
    failure = getattr(device, "failure", None)
    if failure is not None:
        yield f"{name}: lost", f"after {failure.after_s:.3f} s: {failure.error}"


def tables(profile: Profile) -> Iterator[Table]:
    """For the terminal."""
    for title, rows in (("profile", summary(profile)), ("counts", counters(profile))):
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*row)
        yield table
    table = Table(title="where the host's time goes", title_justify="left")
    for column in ("phase", "ms", "share", "calls"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in profile.phases:
        table.add_row(
            phase.name, f"{1e3 * phase.seconds:.2f}", f"{phase.share:.1%}", str(phase.calls)
        )
    yield table


def page(profile: Profile) -> str:
    """One self-contained HTML page."""
    title = f"grasp profile: {html.escape(profile.world_model)}"
    phases = "".join(
        f"<tr><td>{html.escape(phase.name)}</td>"
        f"<td class=number>{1e3 * phase.seconds:.2f} ms</td>"
        f"<td class=number>{phase.share:.1%}</td><td class=number>{phase.calls}</td>"
        f"<td style='width:40%'><div class=bar style='width:{100 * phase.share:.1f}%'></div></td>"
        "</tr>"
        for phase in profile.phases
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><h1>{title}</h1>{rows_of(summary(profile))}"
        "<h2>Where the host's time goes</h2><table><tr><th>phase</th><th class=number>time</th>"
        f"<th class=number>share</th><th class=number>calls</th><th></th></tr>{phases}</table>"
        f"<h2>What the loop asks for</h2>{rows_of(counters(profile))}"
        f"<h2>Operators</h2>{operators('iteration', profile.iteration)}"
        f"{operators('sync step', profile.sync_step)}"
        f"<p class=none>{HOW} A trace of a short plan is in {html.escape(profile.trace)}; "
        "chrome://tracing and ui.perfetto.dev show it.</p></html>\n"
    )


def rows_of(rows: Iterator[Row]) -> str:
    def cell(text: str) -> str:
        quiet = " class=none" if text.startswith(("does not apply", "no NVML")) else ""
        return f"<td{quiet}>{html.escape(text)}</td>"

    body = "".join(f"<tr><td>{html.escape(name)}</td>{cell(text)}</tr>" for name, text in rows)
    return f"<table>{body}</table>"


def operators(name: str, request: Requests) -> str:
    if not request.by_name:
        return f"<p>One more {name} calls no operator: it runs inside a launch.</p>"
    body = "".join(
        f"<tr><td>{html.escape(op)}</td><td class=number>{count:.1f}</td></tr>"
        for op, count in list(request.by_name.items())[:SHOWN]
    )
    return f"<table><tr><th>operator</th><th class=number>calls per {name}</th></tr>{body}</table>"
