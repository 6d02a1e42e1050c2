"""What an evaluation asks for, and the folder that keeps what was found through any interruption.

settings.json    everything that results depend on; another call with other settings is refused
units.jsonl      one line per plan, flushed as it ends; a line that a kill tore is planned again
units-1.jsonl    the same of the plans of rank 1, and so on, where a launcher started several ranks;
                 all are read, whoever goes on, and each rank writes to its own
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from grasp_planner import tasks
from grasp_planner.distributed.launch import ALONE, Ranks
from grasp_planner.presets import planner_config


class Unit(NamedTuple):
    """One plan: the unit of work."""

    task: str
    horizon: int
    planner: str
    problem: int
    """Its index among the problems of task, horizon and seed; the plan's id, too."""


@dataclass(frozen=True)
class Settings:
    """What is asked for."""

    tasks: tuple[str, ...]
    """As asked: full names or aliases."""
    horizons: tuple[int, ...]
    planners: tuple[str, ...]
    problems: int
    """Per task and horizon."""
    seed: int
    """Of problems and of planners' noise."""
    threads: int
    """CPU threads of each worker."""

    def units(self) -> Iterator[Unit]:
        """Every plan, in the order of work: all planners take turns on each problem.

        Who begins changes from problem to problem, so none always finds the caches cold.
        """
        for task in self.tasks:
            for horizon in self.horizons:
                for problem in range(self.problems):
                    turn = problem % len(self.planners)
                    for planner in self.planners[turn:] + self.planners[:turn]:
                        yield Unit(task, horizon, planner, problem)

    def cells(self) -> Iterator[tuple[str, int]]:
        """Every task and horizon."""
        return ((task, horizon) for task in self.tasks for horizon in self.horizons)


def described(settings: Settings, loaded: dict[str, tasks.Task], processor: str) -> dict[str, Any]:
    """All that the results depend on, as JSON has it: the content of settings.json."""
    planner_settings = {
        name: {
            f"{task} T={horizon}": dataclasses.asdict(
                planner_config(name, loaded[task], horizon=horizon, seed=settings.seed)
            )
            for task, horizon in settings.cells()
        }
        for name in settings.planners
    }
    description = {
        **dataclasses.asdict(settings),
        "processor": processor,
        "torch": torch.__version__,
        "weights": {name: fingerprint(task.world_model) for name, task in loaded.items()},
        "planner_settings": planner_settings,
    }
    found: dict[str, Any] = json.loads(json.dumps(description))
    return found


def fingerprint(model: torch.nn.Module) -> str:
    """Of a world model's numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class StoreError(ValueError):
    """A folder that cannot take this evaluation; the message says why."""


class Store:
    """The folder of one evaluation, while one process, or each of several ranks, writes to it."""

    def __init__(self, folder: Path, description: dict[str, Any], world: Ranks = ALONE) -> None:
        """Opens it or goes on in it; all ranks of a world together.

        Raises:
            StoreError: it holds an evaluation with other settings, is damaged, is in use, or is
                not the same folder for all ranks.
            RankLostError: a rank did not open it.
            OSError: it cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._world = world
        self._file = self._path(world.rank).open("a+b")
        try:
            self._lock()
            self._mend()
            if world.first:
                self._guard(folder / "settings.json", description)
            world.meet("the results folder")
            if not world.first:
                self._guard(folder / "settings.json", description)
            self._check_shared()
            self.results: dict[Unit, dict[str, Any]] = self._read()
            world.meet("what is done already")  # nothing is added before all have read the same
        except BaseException:
            self._file.close()
            raise

    def add(self, result: dict[str, Any]) -> None:
        """Keeps what a unit gave; it is in the file when this returns."""
        self._file.write(json.dumps(result, allow_nan=False).encode() + b"\n")
        self._file.flush()
        self.results[unit_of(result)] = result

    def gather(self) -> None:
        """Waits until all ranks have added what they had, and reads it."""
        os.fsync(self._file.fileno())  # for the other machines of a network's file system
        self._world.meet("their shares of the plans")
        self.results = self._read()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _path(self, rank: int) -> Path:
        return self.folder / (f"units-{rank}.jsonl" if rank else "units.jsonl")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill releases it
        except BlockingIOError:
            raise StoreError(f"{self.folder}: another evaluation is writing here") from None

    def _guard(self, path: Path, description: dict[str, Any]) -> None:
        if not path.exists():
            if not self._world.first:
                raise self._not_shared("settings.json of rank 0")
            for file in self._files():
                if file.stat().st_size:
                    raise StoreError(f"{self.folder}: {file.name} has no settings.json beside it")
            write(path, json.dumps(description, indent=1) + "\n")
            return
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"{path}: not JSON: {error}") from error
        found = list(differences(before, description))
        if found:
            more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
            raise StoreError(
                f"{self.folder} holds an evaluation with other settings: {'; '.join(found[:3])}"
                f"{more}. Name another folder by --out, or remove this one"
            )

    def _check_shared(self) -> None:
        for rank in range(self._world.size):
            if not self._path(rank).exists():
                raise self._not_shared(f"{self._path(rank).name} of rank {rank}")

    def _not_shared(self, missing: str) -> StoreError:
        return StoreError(
            f"{self.folder} must be on a file system that all ranks share, and {self._world.name} "
            f"does not see {missing} there"
        )

    def _files(self) -> list[Path]:
        """Of all ranks that ever wrote here."""
        return sorted(
            p for p in self.folder.iterdir() if re.fullmatch(r"units(-\d+)?\.jsonl", p.name)
        )

    def _mend(self) -> None:
        """Cuts off what follows the last whole line of the own file."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)

    def _read(self) -> dict[Unit, dict[str, Any]]:
        """Every whole line of every rank."""
        results = {}
        for path in self._files():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    result = json.loads(line)
                    results[unit_of(result)] = result
                except (ValueError, KeyError, TypeError) as error:
                    raise StoreError(f"{path}, line {number}, is damaged: {error!r}") from error
        return results


def unit_of(result: dict[str, Any]) -> Unit:
    return Unit(*(result[name] for name in Unit._fields))


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two JSON values, each by its name."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            inner = f"{name}, {key}" if name else key
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{name} was {shown(before)}, is {shown(now)}"


def shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def write(path: Path, text: str) -> None:
    """The file is whole or as it was, whenever the process ends."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
