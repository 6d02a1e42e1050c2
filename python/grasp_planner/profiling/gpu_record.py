"""One GPU as NVML shows it: what it is asked at every sample, and what it answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from grasp_planner.profiling.gpu_report import (
    DeviceFailure,
    DeviceReport,
    QueryFailures,
    Reading,
    mean_over_time,
    trapezoid,
)

# nvmlClocksEventReason* (nvml.h): a bit -> what holds the clocks where they are.
CLOCKS_EVENT_REASONS = {
    0x001: "gpu idle",
    0x002: "applications clocks setting",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake slowdown",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability",
}

# Numbers of nvmlReturn_t (nvml.h), since an older nvidia-ml-py lacks some of the names.
# They will not change: the next way to ask is tried, and after the last one none.
PERMANENT_ERRORS = {
    3,  # not supported
    4,  # no permission
    13,  # function not found
    25,  # argument version mismatch
}
# After them asking on is of no use: the device, or NVML, is gone.
FATAL_ERRORS = {
    1,  # uninitialized
    15,  # GPU is lost
    16,  # reset required
    28,  # GPU not found
}

Ask = Callable[[Any], float]


def _ways_to_ask(nvml: Any) -> dict[str, list[Ask]]:
    """Quantity -> calls that give it, best first. Older drivers lack the newer names.

    Power comes first: the closer to the moment that a sample is due, the better.
    """
    sm, memory, sensor = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM, nvml.NVML_TEMPERATURE_GPU
    return {
        "power": [lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000],
        "GPU utilisation": [lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu],
        "memory utilisation": [lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).memory],
        "memory used": [
            # The first version counts what the driver reserves for itself as used.
            lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2).used,
            lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
        ],
        "SM clock": [lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, sm)],
        "memory clock": [lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, memory)],
        "temperature": [
            lambda gpu: nvml.nvmlDeviceGetTemperatureV(gpu, sensor),
            lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, sensor),
        ],
        "throttle reasons": [
            lambda gpu: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
            lambda gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
        ],
        "energy counter": [lambda gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)],
    }


class GpuRecord:
    """Questions to one device and its answers. Asking never raises, whatever the driver does."""

    def __init__(self, nvml: Any, gpu: Any, *, index: int | None, name: str, uuid: str) -> None:
        self.index, self.name, self.uuid = index, name, uuid
        self.failure: DeviceFailure | None = None
        self._nvml, self._gpu = nvml, gpu
        self._ways = _ways_to_ask(nvml)
        self._readings: dict[str, list[Reading]] = {quantity: [] for quantity in self._ways}
        self._not_supported: dict[str, str] = {}
        self._failed: dict[str, QueryFailures] = {}
        self._samples = self._late = 0
        self._opened = time.perf_counter()

    def fail(self, error: str) -> None:
        """Ends the sampling of this device; what was measured stays."""
        self.failure = DeviceFailure(time.perf_counter() - self._opened, error)

    def read_energy_counter(self) -> None:
        """For the beginning and the end of a measurement."""
        self._ask("energy counter")

    def sample(self, due: float, period_s: float) -> None:
        """One round of questions, due at `due` seconds of `time.perf_counter()`."""
        for quantity in self._ways:
            if quantity != "energy counter":
                self._ask(quantity)
        if self.failure is None:
            self._samples += 1
            self._late += time.perf_counter() > due + period_s

    def _ask(self, quantity: str) -> None:
        ways = self._ways[quantity]
        while ways and self.failure is None:
            try:
                before = time.perf_counter()
                value = ways[0](self._gpu)
                after = time.perf_counter()
            except AttributeError:  # an older nvidia-ml-py
                self._drop_way(quantity, "not in the installed nvidia-ml-py")
            except self._nvml.NVMLError as error:
                if error.value in PERMANENT_ERRORS:
                    self._drop_way(quantity, str(error))
                    continue
                if error.value in FATAL_ERRORS:
                    self.fail(str(error))
                else:
                    count = self._failed[quantity].count if quantity in self._failed else 0
                    self._failed[quantity] = QueryFailures(count + 1, str(error))
                return
            except Exception as error:  # else the thread would die, and nobody be told
                self.fail(repr(error))
            else:
                reading = Reading((before + after) / 2, (after - before) / 2, value)
                self._readings[quantity].append(reading)
                return

    def _drop_way(self, quantity: str, answer: str) -> None:
        del self._ways[quantity][0]
        if not self._ways[quantity]:
            self._not_supported[quantity] = answer

    def report(self) -> DeviceReport:
        """All that is known by now."""
        readings = {quantity: tuple(answers) for quantity, answers in self._readings.items()}
        values = {name: [reading.value for reading in found] for name, found in readings.items()}
        energy, source, duration = self._energy(readings["power"], readings["energy counter"])
        return DeviceReport(
            index=self.index,
            name=self.name,
            uuid=self.uuid,
            samples=self._samples,
            late_samples=self._late,
            duration_s=duration,
            energy_j=energy,
            energy_source=source,
            power_mean_w=mean_over_time(readings["power"]),
            power_max_w=max(values["power"], default=None),
            gpu_utilisation_mean_percent=_mean(values["GPU utilisation"]),
            memory_utilisation_mean_percent=_mean(values["memory utilisation"]),
            memory_peak_bytes=max(map(int, values["memory used"]), default=None),
            sm_clock_mean_mhz=_mean(values["SM clock"]),
            sm_clock_min_mhz=min(values["SM clock"], default=None),
            memory_clock_mean_mhz=_mean(values["memory clock"]),
            memory_clock_min_mhz=min(values["memory clock"], default=None),
            temperature_max_c=max(values["temperature"], default=None),
            throttle_reasons=shares_of_reasons([int(m) for m in values["throttle reasons"]]),
            not_supported=dict(self._not_supported),
            failed_queries=dict(self._failed),
            failure=self.failure,
            readings={quantity: found for quantity, found in readings.items() if found},
        )

    def _energy(
        self, power: tuple[Reading, ...], counter: tuple[Reading, ...]
    ) -> tuple[float | None, str, float]:
        """Joules, where they are from, and the seconds that they cover."""
        if len(counter) == 2 and counter[1].value > counter[0].value:
            joules = (counter[1].value - counter[0].value) / 1000
            return joules, "counter", counter[1].time_s - counter[0].time_s
        why = ""
        if len(counter) == 2:
            # It ticks tens of milliseconds apart, and a reset of the driver sets it back.
            stuck = counter[1].value == counter[0].value
            why = f" (the energy counter {'did not move' if stuck else 'went backwards'})"
        elif counter or "energy counter" in self._failed:
            why = " (the energy counter was not read at both ends)"
        if len(power) >= 2:
            source = f"integrated power, {len(power)} samples{why}"
            return trapezoid(power), source, power[-1].time_s - power[0].time_s
        times = [
            answers[i].time_s for answers in self._readings.values() if answers for i in (0, -1)
        ]
        return None, f"not measured{why}", max(times, default=0.0) - min(times, default=0.0)


def shares_of_reasons(masks: list[int]) -> dict[str, float]:
    """Name of a clocks event reason -> share of the masks that have its bit, lowest bit first."""
    seen = 0
    for mask in masks:
        seen |= mask
    bits = [1 << position for position in range(seen.bit_length()) if seen >> position & 1]
    return {
        CLOCKS_EVENT_REASONS.get(bit, f"unknown {bit:#x}"): sum(bool(m & bit) for m in masks)
        / len(masks)
        for bit in bits
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
