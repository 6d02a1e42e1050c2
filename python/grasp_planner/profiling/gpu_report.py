"""What the GPU sampler hands back: numbers with units, and by name whatever could not be had."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple


class Reading(NamedTuple):
    """One answer of the driver.

    It was true at some moment within `time_s ± uncertainty_s`, seconds of `time.perf_counter()`:
    the middle and half the length of the call that asked.
    """

    time_s: float
    uncertainty_s: float
    value: float


@dataclass(frozen=True)
class DeviceFailure:
    """Why sampling of a device ended early: `after_s` seconds into the sampling, and the error."""

    after_s: float
    error: str


@dataclass(frozen=True)
class QueryFailures:
    """A quantity that is supported but sometimes failed: how often, and the last error."""

    count: int
    last_error: str


@dataclass(frozen=True)
class DeviceReport:
    """One GPU while it was sampled. A number that was never read is None, and is named below.

    Power, utilisation, clocks and memory belong to the whole device, whoever uses it. NVML's power
    is itself an average over a second on Ampere and newer, GA100 excepted: the energy counter has
    no such lag, but may be tens of milliseconds old; short bodies are worth repeating.

    Attributes:
        index: NVML's index (PCI order, blind to `CUDA_VISIBLE_DEVICES`); None if it has none.
        samples: rounds of questions that were answered to the end.
        late_samples: those among them that ended over a period after they were due.
        duration_s: the time that `energy_j` covers; without energy, first to last reading.
        energy_j: energy used in `duration_s`, joules.
        energy_source: "counter" (nvmlDeviceGetTotalEnergyConsumption, its difference),
            "integrated power, N samples" (trapezoids) or "not measured", and why if that is news.
        power_mean_w: mean over time; `power_max_w` is the largest reading.
        gpu_utilisation_mean_percent: share of time with a kernel running, in [0, 100].
        memory_utilisation_mean_percent: share of time with memory in use, in [0, 100].
        memory_peak_bytes: the most memory in use.
        throttle_reasons: name of a clocks event reason -> share of samples with it, in (0, 1].
            "gpu idle" and the clocks settings are reasons too, though nothing is slowed down.
        not_supported: quantity -> the driver's answer; it was not asked again.
        failed_queries: quantity -> failures that came and went.
        failure: set if the device was lost, or could not be opened at all.
        readings: quantity -> every answer, in order. "energy counter" is in mJ, "power" in W,
            clocks in MHz, "temperature" in °C, "memory used" in bytes, "throttle reasons" bits.
    """

    index: int | None
    name: str
    uuid: str
    samples: int = 0
    late_samples: int = 0
    duration_s: float = 0.0
    energy_j: float | None = None
    energy_source: str = "not measured"
    power_mean_w: float | None = None
    power_max_w: float | None = None
    gpu_utilisation_mean_percent: float | None = None
    memory_utilisation_mean_percent: float | None = None
    memory_peak_bytes: int | None = None
    sm_clock_mean_mhz: float | None = None
    sm_clock_min_mhz: float | None = None
    memory_clock_mean_mhz: float | None = None
    memory_clock_min_mhz: float | None = None
    temperature_max_c: float | None = None
    throttle_reasons: dict[str, float] = field(default_factory=dict)
    not_supported: dict[str, str] = field(default_factory=dict)
    failed_queries: dict[str, QueryFailures] = field(default_factory=dict)
    failure: DeviceFailure | None = None
    readings: dict[str, tuple[Reading, ...]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class SamplerReport:
    """Every device that was sampled. `reason` is empty, or says why this is not the whole story.

    `devices` is empty where nothing could be sampled: no NVML, no GPU, not started, forked.
    """

    devices: tuple[DeviceReport, ...] = ()
    reason: str = ""
    driver: str = ""
    period_s: float = 0.0


def trapezoid(readings: tuple[Reading, ...]) -> float:
    """The integral of the value over time, first to last reading, by linear interpolation."""
    return sum(
        (later.time_s - earlier.time_s) * (earlier.value + later.value) / 2
        for earlier, later in itertools.pairwise(readings)
    )


def mean_over_time(readings: tuple[Reading, ...]) -> float | None:
    """The integral over the duration; a mean of readings would favour where they are dense."""
    if not readings:
        return None
    duration = readings[-1].time_s - readings[0].time_s
    return trapezoid(readings) / duration if duration > 0 else readings[0].value
