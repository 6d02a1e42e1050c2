"""Numbers of the sampler against those of the script that the stand-in follows."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence

import pynvml
import pytest
from grasp_planner.profiling import DeviceReport, GpuSampler, Reading
from grasp_planner.profiling.gpu_record import (
    CLOCKS_EVENT_REASONS,
    FATAL_ERRORS,
    PERMANENT_ERRORS,
)
from nvml_stand_in import TWO_GPUS, Knots, StandIn, joules, track

NO_COUNTER = "error nvmlDeviceGetTotalEnergyConsumption 3 0"
MILLIWATT = 0.0005  # NVML's power is whole milliwatts


def sampled(
    stand_in: StandIn, script: str, *, until: float, period_s: float = 0.02
) -> DeviceReport:
    """The report of the first device over a body that ends at `until` on the script's clock."""
    stand_in.follow(script)
    with GpuSampler(period_s=period_s) as sampler:
        stand_in.wait_until(until)
    assert sampler.report.reason == ""
    return sampler.report.devices[0]


def largest_error(readings: Sequence[Reading], power: Knots, epoch: float) -> float:
    """What the trapezoids may be off, J: a reading was true within its uncertainty of its time.

    Where the power is straight, that moves an end by slope times uncertainty. Where it has a knot,
    the integral and the trapezoid both lie between the least and the largest power near there.
    """
    error = 0.0
    for left, right in itertools.pairwise(readings):
        uncertainty = max(left.uncertainty_s, right.uncertainty_s)
        start, end = left.time_s - epoch - uncertainty, right.time_s - epoch + uncertainty
        knots = [watts for moment, watts in power if start <= moment <= end]
        ends = [
            watts + side for watts in (left.value, right.value) for side in (-MILLIWATT, MILLIWATT)
        ]
        slope = max(
            abs((w1 - w0) / (t1 - t0))
            for (t0, w0), (t1, w1) in itertools.pairwise(power)
            if t1 > t0
        )
        swing = max(knots + ends) - min(knots + ends) if knots else 0.0
        error += (right.time_s - left.time_s) * (swing + slope * uncertainty + MILLIWATT)
    return error


def test_constant_power_without_a_counter_is_integrated_exactly(stand_in: StandIn) -> None:
    gpu = sampled(stand_in, f"gpu A GPU-a\ntrack power 0 250\n{NO_COUNTER}", until=0.2)
    assert gpu.energy_j == pytest.approx(250 * gpu.duration_s, rel=1e-12)
    assert gpu.energy_source == f"integrated power, {len(gpu.readings['power'])} samples"
    assert gpu.duration_s >= 0.19
    assert (gpu.power_mean_w, gpu.power_max_w) == (pytest.approx(250), 250)
    assert gpu.samples == len(gpu.readings["power"])
    assert 3 <= gpu.samples <= gpu.duration_s / 0.02 + 2
    assert gpu.not_supported == {"energy counter": "Not Supported"}


def test_ramps_and_steps_are_integrated_within_what_the_times_allow(stand_in: StandIn) -> None:
    power = [(0, 100), (0.15, 400), (0.3, 400), (0.3, 50), (0.5, 250), (0.6, 250)]
    script = f"gpu A GPU-a\n{track('power', power)}\n{NO_COUNTER}"
    gpu = sampled(stand_in, script, until=0.7, period_s=0.01)
    readings = gpu.readings["power"]
    exact = joules(power, *(readings[i].time_s - stand_in.epoch for i in (0, -1)))
    assert gpu.energy_j is not None
    assert abs(gpu.energy_j - exact) <= largest_error(readings, power, stand_in.epoch)
    assert gpu.power_mean_w == pytest.approx(gpu.energy_j / gpu.duration_s)


def test_the_counter_is_preferred_and_sees_what_samples_miss(stand_in: StandIn) -> None:
    power = [(0, 100), (0.3, 100), (0.3, 900), (0.4, 900), (0.4, 100)]
    script = f"gpu A GPU-a\n{track('power', power)}"
    gpu = sampled(stand_in, script, until=0.5, period_s=60)
    first, last = gpu.readings["energy counter"]
    exact = joules(power, first.time_s - stand_in.epoch, last.time_s - stand_in.epoch)
    reading = 900 * (first.uncertainty_s + last.uncertainty_s) + 0.001
    assert gpu.energy_source == "counter"
    assert gpu.energy_j == pytest.approx(exact, abs=reading)
    assert gpu.duration_s == last.time_s - first.time_s
    assert len(gpu.readings["power"]) == 2  # at the ends, where the pulse is not
    assert gpu.power_max_w == 100


def test_a_counter_that_has_not_ticked_is_not_zero_energy(stand_in: StandIn) -> None:
    gpu = sampled(stand_in, "gpu A GPU-a\ntrack power 0 250\ntick 1000", until=0.05)
    assert gpu.energy_j == pytest.approx(250 * gpu.duration_s)
    assert gpu.energy_source.startswith("integrated power")
    assert gpu.energy_source.endswith("(the energy counter did not move)")


def test_slow_calls_are_late_and_do_not_distort_the_integral(stand_in: StandIn) -> None:
    slope = 1000.0
    power = [(0, 0), (100, 100 * slope)]
    slow = "slow nvmlDeviceGetPowerUsage 5 6 0.15"
    stand_in.follow(f"gpu A GPU-a\n{track('power', power)}\n{slow}\n{NO_COUNTER}")
    with GpuSampler() as sampler:
        while stand_in.calls(0, "nvmlDeviceGetPowerUsage") < 18:  # of which 5, 11 and 17 are slow
            time.sleep(0.01)
    gpu = sampler.report.devices[0]
    readings, moments = gpu.readings["power"], stand_in.power_moments(0)
    off = [abs(reading.time_s - true) for reading, true in zip(readings, moments, strict=True)]
    assert all(o <= r.uncertainty_s + 1e-6 for o, r in zip(off, readings, strict=True))

    hiccups = [o for o, r in zip(off, readings, strict=True) if r.uncertainty_s >= 0.074]
    assert len(hiccups) >= 2
    assert statistics.median(hiccups) < 0.04  # the driver answers midway: either end is 0.075 off
    assert len(hiccups) <= gpu.late_samples <= gpu.samples

    exact = joules(power, *(readings[i].time_s - stand_in.epoch for i in (0, -1)))
    allowed = sum(
        (right.time_s - left.time_s) * (slope * max(two_off) + MILLIWATT)
        for (left, right), two_off in zip(
            itertools.pairwise(readings), itertools.pairwise(off), strict=True
        )
    )
    assert gpu.energy_j == pytest.approx(exact, abs=allowed)


def test_nothing_is_late_where_the_driver_is_quick(stand_in: StandIn) -> None:
    gpu = sampled(stand_in, "gpu A GPU-a\ntrack power 0 250", until=0.1, period_s=5.0)
    assert (gpu.samples, gpu.late_samples) == (2, 0)


def test_every_quantity_of_a_device(stand_in: StandIn) -> None:
    script = """
    gpu NVIDIA-Stand-In GPU-1234
    track power 0 300
    track gpu_utilisation 0 40
    track memory_utilisation 0 20
    track memory_used 0 6e9 0.5 6e9 0.5 1e9
    track memory_reserved 0 3e8
    track sm_clock 0 1980 0.5 1980 0.5 1200
    track memory_clock 0 2600
    track temperature 0 71 0.5 71 0.5 55
    track reasons 0 0 0.5 0 0.5 4132
    """
    gpu = sampled(stand_in, script, until=0.7)
    assert (gpu.index, gpu.name, gpu.uuid) == (0, "NVIDIA-Stand-In", "GPU-1234")
    assert gpu.gpu_utilisation_mean_percent == 40
    assert gpu.memory_utilisation_mean_percent == 20
    assert gpu.memory_peak_bytes == 6_000_000_000
    assert gpu.readings["memory used"][-1].value == 1e9
    clocks = [reading.value for reading in gpu.readings["SM clock"]]
    assert gpu.sm_clock_min_mhz == 1200 == clocks[-1]
    assert gpu.sm_clock_mean_mhz == pytest.approx(statistics.mean(clocks))
    assert 1200 < gpu.sm_clock_mean_mhz < 1980
    assert (gpu.memory_clock_mean_mhz, gpu.memory_clock_min_mhz) == (2600, 2600)
    assert gpu.temperature_max_c == 71
    masks = [reading.value for reading in gpu.readings["throttle reasons"]]
    share = masks.count(4132) / len(masks)
    assert 0 < share < 1
    assert gpu.throttle_reasons == {
        "software power cap": share,  # 4132 = 0x1024
        "software thermal slowdown": share,
        "unknown 0x1000": share,
    }
    assert gpu.not_supported == gpu.failed_queries == {}
    assert gpu.failure is None


def test_names_and_numbers_are_those_of_nvml() -> None:
    fatal = {"UNINITIALIZED", "GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND"}
    permanent = {
        "NOT_SUPPORTED",
        "NO_PERMISSION",
        "FUNCTION_NOT_FOUND",
        "ARGUMENT_VERSION_MISMATCH",
    }
    for names, numbers in ((fatal, FATAL_ERRORS), (permanent, PERMANENT_ERRORS)):
        assert {getattr(pynvml, f"NVML_ERROR_{name}") for name in names} == numbers
    for bit, name in CLOCKS_EVENT_REASONS.items():
        words = name.replace("software", "sw").replace("hardware", "hw").split()
        in_nvml = "nvmlClocksThrottleReason" + "".join(word.capitalize() for word in words)
        assert getattr(pynvml, in_nvml) == bit


def test_two_devices_are_told_apart(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    with GpuSampler() as sampler:
        stand_in.wait_until(0.2)
    first, second = sampler.report.devices
    assert (first.index, first.name, first.uuid) == (0, "A", "GPU-aaaa")
    assert (second.index, second.name, second.uuid) == (1, "B", "GPU-bbbb")
    assert (first.power_max_w, second.power_max_w) == (250, 100)
    assert (first.memory_peak_bytes, second.memory_peak_bytes) == (1_000_000_000, 2_000_000_000)
    for gpu, watts in ((first, 250), (second, 100)):
        counter = gpu.readings["energy counter"]
        reading = watts * sum(r.uncertainty_s for r in counter) + 0.001
        assert gpu.energy_source == "counter"
        assert gpu.energy_j == pytest.approx(watts * gpu.duration_s, abs=reading)
    assert sampler.report.driver == "000.00"


@pytest.mark.parametrize("wanted", [[1], ["GPU-bbbb"], ["bbbb"]], ids=str)
def test_a_device_by_index_or_uuid(stand_in: StandIn, wanted: list[int | str]) -> None:
    stand_in.follow(TWO_GPUS)
    with GpuSampler(wanted) as sampler:
        time.sleep(0.01)
    (gpu,) = sampler.report.devices
    assert (gpu.index, gpu.name) == (1, "B")
    assert stand_in.calls(0, "nvmlDeviceGetPowerUsage") == 0
