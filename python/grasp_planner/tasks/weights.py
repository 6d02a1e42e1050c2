"""Modules on disk: `weights.safetensors`, with task, architecture and sizes in its header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grasp_planner.tasks.requirements import require

if TYPE_CHECKING:
    from grasp_planner.tasks.task import Task

WEIGHTS_FILE = "weights.safetensors"
_KIND = "world_model"


def save_weights(model: Any, folder: Path, *, task: str) -> Path:
    """Writes a model's tensors and what is needed to rebuild it; returns the file's path."""
    return save_module(model, folder / WEIGHTS_FILE, _KIND, task=task)


def load_weights(folder: Path, task: type[Task]) -> Any:
    """The `nn.Module` of a folder, in evaluation mode and frozen, checked to belong to `task`."""
    path = folder if folder.suffix == ".safetensors" else folder / WEIGHTS_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{task.name}: no weights at {path}; "
            f"train them with `grasp train {task.name} --out {folder}`"
        )

    def build(header: dict[str, Any]) -> Any:
        found, wanted = header["architecture"], task.architecture.__name__
        if found != wanted:
            raise ValueError(f"{path} holds a {found}, but {task.name} is modelled by a {wanted}")
        return task.architecture(**header["sizes"])

    return load_module(path, _KIND, task=task.name, build=build)


def save_module(module: Any, path: Path, kind: str, *, task: str, **about: str) -> Path:
    """Writes a module's tensors; the header, under the key `kind`, says what they are of.

    The module offers `sizes`, the keywords that its class builds one like it from.
    """
    from safetensors.torch import save_file

    header = {
        "task": task,
        "architecture": type(module).__name__,
        "sizes": module.sizes,
        **about,
    }
    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    # One key: safetensors writes several in random order, and equal models should be equal files.
    save_file(tensors, path, metadata={kind: json.dumps(header)})
    path.chmod(0o644)  # safetensors writes for the owner alone; a package is read by others
    return path


def load_module(path: Path, kind: str, *, task: str, build: Callable[[dict[str, Any]], Any]) -> Any:
    """The module of a file, which `build` makes from its header, in evaluation mode and frozen.

    Raises ValueError where the file is of another task, and what `build` raises.
    """
    safetensors = require("safetensors", task=task)
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get(kind, "{}"))
        found = header.get("task")
        if found != task:
            what = kind.replace("_", " ")
            raise ValueError(f"{path} holds a {what} of {found!r}, not of {task!r}")
        module = build(header)
        tensors: dict[str, torch.Tensor] = {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
        }
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)
