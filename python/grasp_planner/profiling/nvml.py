"""A background thread that asks NVML, a few dozen times a second, what the GPUs are doing.

    with GpuSampler() as sampler:
        plan = planner.plan(start, goal)
        torch.cuda.synchronize()
    for device in sampler.report.devices:
        print(device.name, device.energy_j, "J from", device.energy_source)

NVML is reached by NVIDIA's `nvidia-ml-py` (`pip install grasp-kernels[profile]`), imported at the
first use. A machine without it, or without a driver, gets a report that says so.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from grasp_planner.profiling.gpu_record import GpuRecord
from grasp_planner.profiling.gpu_report import SamplerReport

PERIOD_S = 0.020
PERIODS_S = (0.001, 60.0)  # below, asking is all the thread would do
PATIENCE_S = 10.0  # how long a driver call may keep `stop` waiting

# The process that last sampled. A fork inherits the locks of NVML and of pynvml as they were, and
# no thread to release them: there, asking anything could hang.
_sampling_pid: int | None = None


class GpuSampler:
    """Samples GPUs from `start` to `stop`, or for as long as a `with` block runs. For one use.

    Args:
        devices: NVML indices (PCI order, as `nvidia-smi` lists them), UUIDs ("GPU-..." or
            "MIG-..."; one that names no kind, as torch prints it, is a GPU's), or both; None
            for every device that NVML sees, whatever `CUDA_VISIBLE_DEVICES` says.
        period_s: seconds from sample to sample, 0.001 to 60.

    Raises:
        TypeError, ValueError: for arguments that are none of the above. `start` raises ValueError
            for a device that is not there, or named twice.

    All devices are asked in turn by one daemon thread. The first sample is taken by `start` itself
    and the last at `stop`, so that any body lies between two. A body that holds the interpreter's
    lock delays samples; they are counted as late, and integrals use the times when the driver was
    asked. Readings are kept: some 60 kB per second and device at the default period.
    """

    def __init__(
        self, devices: Sequence[int | str] | None = None, *, period_s: float = PERIOD_S
    ) -> None:
        self._wanted = None if devices is None else _checked(devices)
        low, high = PERIODS_S
        if isinstance(period_s, bool) or not isinstance(period_s, (int, float)):
            raise TypeError(f"period_s must be a number, got {type(period_s).__name__}")
        if not low <= period_s <= high:
            raise ValueError(f"period_s must be in {low:g} ... {high:g}, got {period_s}")
        self._period_s = float(period_s)
        self._pid: int | None = None
        self._report = SamplerReport(reason="not started", period_s=self._period_s)
        self._records: list[GpuRecord] = []
        self._nvml: Any = None  # while NVML is open
        self._driver = self._reason = ""
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="grasp-gpu-sampler", daemon=True)

    @staticmethod
    def available() -> tuple[bool, str]:
        """Whether there is a GPU to sample, and the driver, or why not. Leaves NVML as it was."""
        nvml, reason = _initialised_nvml()
        if nvml is None:
            return False, reason
        try:
            count = nvml.nvmlDeviceGetCount()
            driver = nvml.nvmlSystemGetDriverVersion()
        except nvml.NVMLError as error:
            return False, f"no NVML: {error}"
        finally:
            _shut_down(nvml)
        return count > 0, f"driver {driver}, {count} device{'s' * (count != 1)}"

    @property
    def report(self) -> SamplerReport:
        """What was measured, complete after `stop`."""
        if self._pid not in (None, os.getpid()):
            return SamplerReport(
                reason=f"sampling in process {self._pid}, of which this is a fork: not here",
                period_s=self._period_s,
            )
        return self._report

    def start(self) -> GpuSampler:
        """Takes the first sample, starts the thread. Without NVML it only notes the reason.

        Raises:
            RuntimeError: if it was started before.
            ValueError: for a device that is not there, or named twice.
        """
        global _sampling_pid
        if self._pid is not None:
            raise RuntimeError("this GpuSampler was started before; make another one")
        nvml, reason = _initialised_nvml()
        self._pid = os.getpid()
        if nvml is None:
            self._report = SamplerReport(reason=reason, period_s=self._period_s)
            return self
        self._nvml, _sampling_pid = nvml, self._pid
        try:
            self._open_devices(nvml)
            self._report = self._summary("still sampling: `stop` makes the report")
            self._sample(time.perf_counter())
            for record in self._records:
                record.read_energy_counter()  # last, next to the body
            self._thread.start()
        except BaseException:  # a KeyboardInterrupt, say: no thread may be left, nor NVML open
            self._stopping.set()
            if self._thread.ident is None:
                self._close()
            raise
        return self

    def stop(self) -> SamplerReport:
        """Takes the last sample, ends the thread. Again, or without `start`, it does nothing more.

        Waits no longer than 10 s for a driver call that does not return; the report then has what
        came before it, and says so.
        """
        if self._pid == os.getpid() and self._thread.ident is not None:
            self._stopping.set()  # first: whatever interrupts the wait below, the thread ends
            # Not by `join` alone: CPython 3.11 takes a thread for dead if its join is interrupted.
            if self._ended.wait(PATIENCE_S):
                self._thread.join()
                self._report = self._summary(self._reason)
            else:
                hangs = f"a driver call did not return in {PATIENCE_S:g} s: numbers up to there"
                self._report = self._summary(hangs)
        return self.report

    def __enter__(self) -> GpuSampler:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _summary(self, reason: str) -> SamplerReport:
        devices = tuple(record.report() for record in self._records)
        return SamplerReport(devices, reason, self._driver, self._period_s)

    def _open_devices(self, nvml: Any) -> None:
        try:
            self._driver = nvml.nvmlSystemGetDriverVersion()
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self._reason = f"no NVML: {error}"
            return
        for device in range(count) if self._wanted is None else self._wanted:
            record = _opened(nvml, device)
            if record is None:
                raise ValueError(f"devices: {device!r} is not among the {count} that NVML sees")
            if record.uuid and record.uuid in [other.uuid for other in self._records]:
                raise ValueError(f"devices names {record.uuid} twice")
            self._records.append(record)
        if not self._records:
            self._reason = "NVML sees no GPU"

    def _sample(self, due: float) -> None:
        for record in self._records:
            record.sample(due, self._period_s)

    def _run(self) -> None:
        """The thread: samples when due, skips what it has missed, ends with the closing sample."""
        due = time.perf_counter() + self._period_s
        try:
            while not self._stopping.wait(max(0.0, due - time.perf_counter())):
                self._sample(due)
                missed = (time.perf_counter() - due) / self._period_s
                due += self._period_s * max(1, math.ceil(missed))
            for record in self._records:
                record.read_energy_counter()  # first, next to the body
            self._sample(time.perf_counter())
        finally:
            self._close()
            self._ended.set()

    def _close(self) -> None:
        """Gives NVML back, once: it counts its users, and another one may still be there."""
        with self._closing:
            nvml, self._nvml = self._nvml, None
        if nvml is not None:
            _shut_down(nvml)


def _checked(devices: Sequence[int | str]) -> list[int | str]:
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise TypeError(f"devices must be a sequence or None, got {type(devices).__name__}")
    if not devices:
        raise ValueError("devices names none; None means all of them")
    wanted: list[int | str] = []
    for device in devices:
        if isinstance(device, bool) or not isinstance(device, (int, str)):
            raise TypeError(
                f"devices must hold indices (int) or UUIDs (str), got {type(device).__name__}"
            )
        if isinstance(device, int) and device < 0:
            raise ValueError(f"devices must hold indices of at least 0, got {device}")
        no_kind = isinstance(device, str) and not device.startswith(("GPU-", "MIG-"))
        wanted.append(f"GPU-{device}" if no_kind else device)
    return wanted


def _initialised_nvml() -> tuple[Any, str]:
    """The `pynvml` module, initialised, or None and why."""
    if _sampling_pid not in (None, os.getpid()):
        return None, f"no NVML: after a fork of process {_sampling_pid}, which sampled GPUs"
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        return None, f"no NVML: {error} (pip install nvidia-ml-py)"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"no NVML: {error}"
    return nvml, ""


def _shut_down(nvml: Any) -> None:
    # Somebody may have shut NVML down once too often; then there is nothing left to give back.
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()


def _opened(nvml: Any, device: int | str) -> GpuRecord | None:
    """A record to fill, already failed if the device cannot be opened; None if there is no such."""
    index = device if isinstance(device, int) else None
    uuid = device if isinstance(device, str) else ""
    try:
        by_index, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        gpu = by_uuid(uuid) if index is None else by_index(index)
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_INVALID_ARGUMENT, nvml.NVML_ERROR_NOT_FOUND):
            return None
        record = GpuRecord(nvml, None, index=index, name="", uuid=uuid)
        record.fail(str(error))
        return record

    def ask(question: Callable[[Any], Any], otherwise: Any) -> Any:
        try:
            return question(gpu)
        except nvml.NVMLError:
            return otherwise

    return GpuRecord(
        nvml,
        gpu,
        index=ask(nvml.nvmlDeviceGetIndex, index),
        name=ask(nvml.nvmlDeviceGetName, ""),
        uuid=ask(nvml.nvmlDeviceGetUUID, uuid),
    )
