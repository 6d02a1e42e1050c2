"""Starting, stopping, interrupting and forking: the thread ends and NVML is given back."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pynvml
import pytest
from grasp_planner.profiling import GpuSampler, nvml
from nvml_stand_in import TWO_GPUS, StandIn

PATIENCE_S = 30.0  # for what takes milliseconds on an idle machine


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert sampler_threads() == []


def sampler_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "grasp-gpu-sampler"]


@contextmanager
def interrupted(after_s: float) -> Iterator[None]:
    """A KeyboardInterrupt in the main thread, `after_s` seconds from now."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait_for(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.001)


def wait_for_calls(stand_in: StandIn, count: int) -> None:
    """Until the driver was asked for the power of device 0 that often."""
    wait_for(lambda: stand_in.calls(0, "nvmlDeviceGetPowerUsage") >= count)


def test_stopping_twice_changes_nothing(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    sampler = GpuSampler().start()
    assert stand_in.users == 1
    assert all(thread.daemon for thread in sampler_threads())
    assert sampler.report.reason == "still sampling: `stop` makes the report"
    first = sampler.stop()
    assert stand_in.users == 0
    asked = stand_in.calls(0, "nvmlDeviceGetPowerUsage")
    assert sampler.stop() == first == sampler.report
    assert stand_in.users == 0
    assert stand_in.calls(0, "nvmlDeviceGetPowerUsage") == asked


def test_stopping_without_a_start(stand_in: StandIn) -> None:
    report = GpuSampler().stop()
    assert (report.devices, report.reason) == ((), "not started")


def test_starting_twice_is_refused(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    with GpuSampler() as sampler, pytest.raises(RuntimeError, match="started before"):
        sampler.start()


def test_an_error_in_the_body_stops_the_sampler_and_passes(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    sampler = GpuSampler()
    with pytest.raises(ZeroDivisionError), sampler:
        raise ZeroDivisionError
    assert stand_in.users == 0
    assert sampler_threads() == []
    assert sampler.report.devices[0].samples >= 2


def test_other_users_of_nvml_are_left_alone(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    pynvml.nvmlInit()
    with GpuSampler([0]) as one, GpuSampler([1]) as other:
        assert stand_in.users == 3
    assert GpuSampler.available()[0]
    assert stand_in.users == 1
    assert pynvml.nvmlDeviceGetCount() == 2
    pynvml.nvmlShutdown()
    assert (one.report.devices[0].name, other.report.devices[0].name) == ("A", "B")


def test_nvml_shut_down_by_somebody_else_ends_the_sampling(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    with GpuSampler() as sampler:
        pynvml.nvmlShutdown()
        time.sleep(0.05)
    for gpu in sampler.report.devices:
        assert gpu.failure is not None
        assert gpu.failure.error == "Uninitialized"


def test_an_interrupt_in_the_body(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    sampler = GpuSampler()
    with pytest.raises(KeyboardInterrupt), sampler, interrupted(0.05):
        time.sleep(PATIENCE_S)
    assert stand_in.users == 0
    assert sampler.report.devices[0].samples >= 2


def test_an_interrupt_while_starting(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS.replace("gpu B", "slow nvmlDeviceGetPowerUsage 1 9999 0.5\ngpu B"))
    sampler = GpuSampler()
    with pytest.raises(KeyboardInterrupt), interrupted(0.1):
        sampler.start()
    assert stand_in.users == 0
    assert sampler_threads() == []
    sampler.stop()


def test_an_interrupt_just_after_the_launch(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    pynvml.nvmlInit()
    sampler = GpuSampler()
    thread = sampler._thread

    class Interrupted:
        ident = None  # as it is until the launched thread has its turn

        def start(self) -> None:
            thread.start()
            raise KeyboardInterrupt

    sampler._thread = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        sampler.start()
    thread.join(PATIENCE_S)
    assert stand_in.users == 1  # given back by one of the two, not by both
    pynvml.nvmlShutdown()


def test_an_interrupt_while_stopping(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS.replace("gpu B", "slow nvmlDeviceGetPowerUsage 3 9999 1.0\ngpu B"))
    sampler = GpuSampler().start()
    wait_for_calls(stand_in, 3)  # the slow one has begun: `stop` has to wait for it
    with pytest.raises(KeyboardInterrupt), interrupted(0.1):
        sampler.stop()
    assert stand_in.users == 1
    wait_for(lambda: stand_in.users == 0)  # the thread ends by itself
    assert sampler.stop().reason == ""
    assert sampler.report.devices[0].energy_source == "counter"


def test_a_driver_that_hangs_does_not_keep_the_program(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "PATIENCE_S", 0.1)
    stand_in.follow(TWO_GPUS.replace("gpu B", "slow nvmlDeviceGetPowerUsage 3 9999 1.0\ngpu B"))
    sampler = GpuSampler().start()
    wait_for_calls(stand_in, 3)
    report = sampler.stop()
    assert report.reason == "a driver call did not return in 0.1 s: numbers up to there"
    assert report.devices[0].samples == 2
    assert stand_in.users == 1
    wait_for(lambda: stand_in.users == 0)
    assert sampler.stop().reason == ""


def in_a_fork(work: Any) -> Any:
    """What `work()` returns in a forked child, which must not hang."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writable, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writable)
    if not select.select([readable], [], [], PATIENCE_S)[0]:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(readable) as answer:
        return json.loads(answer.read() or '"the child hung or died"')


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, which is right
def test_a_fork_does_not_sample(stand_in: StandIn) -> None:
    stand_in.follow(TWO_GPUS)
    not_started = GpuSampler()

    def child() -> list[Any]:
        before = stand_in.users, stand_in.calls(0, "nvmlDeviceGetPowerUsage")
        reports = [sampler.stop(), sampler.report, not_started.start().stop()]
        reports.append(GpuSampler().start().stop())
        sampler.__exit__(None, None, None)
        untouched = before == (stand_in.users, stand_in.calls(0, "nvmlDeviceGetPowerUsage"))
        found = [[len(report.devices), report.reason] for report in reports]
        return [*found, GpuSampler.available(), untouched, len(sampler_threads())]

    with GpuSampler() as sampler:
        wait_for_calls(stand_in, 3)
        # As if the fork had come while the sampler's thread was about to set or close something.
        with sampler._closing, sampler._stopping._cond:
            answer = in_a_fork(child)
        asked = stand_in.calls(0, "nvmlDeviceGetPowerUsage")
        wait_for_calls(stand_in, asked + 2)  # the parent goes on
    inherited = [0, f"sampling in process {os.getpid()}, of which this is a fork: not here"]
    refused = f"no NVML: after a fork of process {os.getpid()}, which sampled GPUs"
    assert answer == [
        inherited,
        inherited,
        [0, refused],
        [0, refused],
        [False, refused],
        True,
        0,
    ]
    assert sampler.report.reason == ""
