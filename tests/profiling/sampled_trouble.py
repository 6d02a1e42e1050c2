"""What the sampler does when NVML refuses, fails, or loses a device."""

from __future__ import annotations

import pynvml
import pytest
from grasp_planner.profiling import GpuSampler, SamplerReport
from nvml_stand_in import TWO_GPUS, StandIn

NOT_SUPPORTED, FUNCTION_NOT_FOUND, DRIVER_NOT_LOADED, LOST, UNKNOWN = 3, 13, 9, 15, 999


def sampled(stand_in: StandIn, script: str, *, until: float = 0.1) -> SamplerReport:
    stand_in.follow(script)
    with GpuSampler() as sampler:
        stand_in.wait_until(until)
    return sampler.report


def test_what_a_mig_device_does_not_support_is_named_and_not_asked_again(
    stand_in: StandIn,
) -> None:
    refused = (
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    )
    each_twice = ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetClockInfo")  # two quantities
    errors = "\n".join(f"error {name} {NOT_SUPPORTED} 0" for name in (*refused, *each_twice))
    report = sampled(stand_in, f"gpu A MIG-1\ntrack memory_used 0 1e9\n{errors}")
    (gpu,) = report.devices
    assert set(gpu.not_supported) == {
        "power",
        "GPU utilisation",
        "memory utilisation",
        "SM clock",
        "memory clock",
        "temperature",
        "throttle reasons",
        "energy counter",
    }
    assert set(gpu.not_supported.values()) == {"Not Supported"}
    assert [stand_in.calls(0, name) for name in refused] == [1] * len(refused)
    assert [stand_in.calls(0, name) for name in each_twice] == [2] * len(each_twice)
    assert stand_in.calls(0, "nvmlDeviceGetMemoryInfo_v2") == gpu.samples >= 2
    assert gpu.memory_peak_bytes == 1_000_000_000
    assert (gpu.energy_j, gpu.energy_source) == (None, "not measured")
    assert gpu.power_mean_w is gpu.power_max_w is gpu.sm_clock_min_mhz is None
    assert gpu.duration_s > 0
    assert gpu.throttle_reasons == {}
    assert gpu.failure is None
    assert report.reason == ""


def test_an_older_driver_is_asked_by_the_older_names(stand_in: StandIn) -> None:
    script = f"""
    gpu A GPU-a
    track power 0 250
    track memory_used 0 1e9
    track memory_reserved 0 3e8
    track temperature 0 60
    track reasons 0 8
    error nvmlDeviceGetMemoryInfo_v2 {FUNCTION_NOT_FOUND} 0
    error nvmlDeviceGetTemperatureV {FUNCTION_NOT_FOUND} 0
    error nvmlDeviceGetCurrentClocksEventReasons {FUNCTION_NOT_FOUND} 0
    """
    (gpu,) = sampled(stand_in, script).devices
    assert gpu.memory_peak_bytes == 1_300_000_000  # with what the driver reserves
    assert gpu.temperature_max_c == 60
    assert gpu.throttle_reasons == {"hardware slowdown": 1.0}
    assert gpu.not_supported == {}
    assert stand_in.calls(0, "nvmlDeviceGetMemoryInfo_v2") == 1


def test_a_device_lost_midway_keeps_what_was_measured(stand_in: StandIn) -> None:
    lost_at = 0.3
    script = TWO_GPUS.replace("gpu B", f"error * {LOST} {lost_at}\ngpu B")
    report = sampled(stand_in, script, until=0.6)
    lost, other = report.devices
    readings = lost.readings["power"]
    assert lost.failure is not None
    assert lost.failure.error == "GPU is lost"
    assert lost.failure.after_s > lost.duration_s > 0
    assert readings[-1].time_s - readings[-1].uncertainty_s < stand_in.epoch + lost_at
    source = f"integrated power, {len(readings)} samples"
    assert lost.energy_source == f"{source} (the energy counter was not read at both ends)"
    assert lost.energy_j == pytest.approx(250 * lost.duration_s)
    assert lost.duration_s <= lost_at + readings[-1].uncertainty_s
    assert stand_in.calls(0, "nvmlDeviceGetPowerUsage") <= len(readings) + 1  # left alone since

    assert other.failure is None
    assert other.energy_source == "counter"
    assert other.readings["power"][-1].time_s >= stand_in.epoch + 0.6
    assert report.reason == ""


def test_a_device_lost_before_the_start_is_reported(stand_in: StandIn) -> None:
    script = TWO_GPUS.replace("gpu B", f"error nvmlDeviceGetHandleByIndex_v2 {LOST} 0\ngpu B")
    lost, other = sampled(stand_in, script).devices
    assert lost.failure is not None
    assert lost.failure.error == "GPU is lost"
    assert (lost.index, lost.samples, lost.energy_j, lost.readings) == (0, 0, None, {})
    assert other.failure is None
    assert other.power_max_w == 100


def test_a_query_that_fails_now_and_then_is_counted_and_asked_again(stand_in: StandIn) -> None:
    script = f"""
    gpu A GPU-a
    track power 0 250
    track gpu_utilisation 0 80
    error nvmlDeviceGetUtilizationRates {UNKNOWN} 0.3
    error nvmlDeviceGetTotalEnergyConsumption {UNKNOWN} 0
    """
    (gpu,) = sampled(stand_in, script, until=0.5).devices
    failed = gpu.failed_queries["GPU utilisation"]
    assert failed.last_error == "Unknown Error"
    assert failed.count + len(gpu.readings["GPU utilisation"]) == gpu.samples
    assert failed.count >= 1
    assert gpu.gpu_utilisation_mean_percent == 80
    assert gpu.energy_j == pytest.approx(250 * gpu.duration_s)
    assert gpu.energy_source.endswith("(the energy counter was not read at both ends)")
    assert gpu.not_supported == {}


def test_an_error_that_is_not_nvmls_ends_the_device_and_is_reported(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    power_usage = pynvml.nvmlDeviceGetPowerUsage

    def broken(gpu: object) -> object:
        if stand_in.calls(0, "nvmlDeviceGetPowerUsage") >= 2:
            raise OSError("the binding is broken")
        return power_usage(gpu)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", broken)
    (gpu,) = sampled(stand_in, "gpu A GPU-a\ntrack power 0 250").devices
    assert gpu.failure is not None
    assert gpu.failure.error == "OSError('the binding is broken')"
    assert gpu.energy_j == pytest.approx(250 * gpu.duration_s)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (f"error nvmlInitWithFlags {DRIVER_NOT_LOADED} 0", "no NVML: Driver Not Loaded"),
        (f"error nvmlDeviceGetCount_v2 {UNKNOWN} 0", "no NVML: Unknown Error"),
        ("", "NVML sees no GPU"),
    ],
    ids=["no driver", "no count", "no GPU"],
)
def test_nothing_to_sample_is_a_report(stand_in: StandIn, script: str, reason: str) -> None:
    report = sampled(stand_in, script, until=0.0)
    assert (report.devices, report.reason) == ((), reason)
    available, why = GpuSampler.available()
    assert not available
    assert why in (reason, "driver 000.00, 0 devices")


def test_available_says_what_is_there(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    assert GpuSampler.available() == (True, "driver 000.00, 2 devices")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([0, 2], "devices: 2 is not among the 2 that NVML sees"),
        (["GPU-cccc"], "devices: 'GPU-cccc' is not among the 2 that NVML sees"),
        ([0, "GPU-aaaa"], "devices names GPU-aaaa twice"),
    ],
    ids=["index", "UUID", "twice"],
)
def test_devices_that_cannot_be_meant(
    stand_in: StandIn, wanted: list[int | str], message: str
) -> None:
    stand_in.follow(TWO_GPUS)
    sampler = GpuSampler(wanted)
    with pytest.raises(ValueError, match=message):
        sampler.start()
    assert stand_in.users == 0
    sampler.stop()
