"""Runs of several processes, by `torchrun` and without, that leave none behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "GRASP_TEST_RUN"  # in the environment of all that a run starts
QUIET = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_ERROR_FILE": ""}
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Run:
    """A process, all that it starts, and what they say."""

    def __init__(self, command: list[str], **variables: str) -> None:
        self.mark = uuid.uuid4().hex
        inherited = {k: v for k, v in os.environ.items() if k not in LAUNCHERS}
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                command,
                env={**inherited, **QUIET, MARK: self.mark, **variables},
                stdout=out,
                stderr=err,
                start_new_session=True,
                # A shell makes what it starts in the background deaf to Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def end(self, seconds: float = 120.0) -> tuple[int, str, str]:
        """Exit status, standard output and standard error, when it has ended."""
        status = self.process.wait(seconds)
        return status, *self.said()

    def said(self) -> tuple[str, str]:
        """What it wrote so far."""
        out, err = (file.read_text() for file in self._files)
        return out, err

    def living(self) -> list[int]:
        """All processes of the run that still live."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes().split(
                    b"\0"
                )
                zombie = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:  # it ended meanwhile, or is another user's
                continue
            if ours and not zombie:
                found.append(int(path.name))
        return found

    def rank(self, rank: int) -> int:
        """The process of a rank that torchrun started: its child, not the rank's own workers."""
        for pid in self.living():
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if f"RANK={rank}".encode() in variables and parent == self.process.pid:
                return pid
        raise AssertionError(f"there is no rank {rank}")

    def close(self) -> None:
        """Kills what is left."""
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._folder.cleanup()


@contextmanager
def torchrun(ranks: int, *arguments: str, restarts: int = 0) -> Iterator[Run]:
    """`torchrun ... grasp ARGUMENTS` on this machine; whatever happens, it is gone afterwards."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    run = Run([*launcher, "-m", "grasp_planner.cli", *arguments])
    try:
        yield run
    finally:
        run.close()


@contextmanager
def processes(ranks: int, script: str, *arguments: str) -> Iterator[list[Run]]:
    """Python processes that know of each other, as any launcher has it, and are not watched."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    runs: list[Run] = []
    try:
        for rank in range(ranks):
            place = {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            runs.append(Run([sys.executable, "-c", script, *arguments], **place))
        yield runs
    finally:
        for run in runs:
            run.close()


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
