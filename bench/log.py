"""A file of measurements, one JSON line each, that survives a kill and is gone on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Log:
    """The lines of a file. What a line is about is said by its fields `about`."""

    def __init__(self, path: Path, about: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.about = about
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have torn the last line
        if whole != content:
            path.write_bytes(whole)
        self.lines = {self.key(line): line for line in map(json.loads, whole.splitlines())}

    def key(self, line: Line) -> str:
        return json.dumps([line[name] for name in self.about], sort_keys=True)

    def add(self, line: Line) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines[self.key(line)] = line
