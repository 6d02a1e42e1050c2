"""World models on disk: `weights.safetensors`, with task, architecture and sizes in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grasp_planner.tasks.requirements import require

if TYPE_CHECKING:
    from grasp_planner.tasks.task import Task

WEIGHTS_FILE = "weights.safetensors"
_HEADER = "world_model"


def save_weights(model: Any, folder: Path, *, task: str) -> Path:
    """Writes a model's tensors and what is needed to rebuild it; returns the file's path.

    The model offers `sizes`, the keywords that its class builds one like it from.
    """
    from safetensors.torch import save_file

    path = folder / WEIGHTS_FILE
    header = {"task": task, "architecture": type(model).__name__, "sizes": model.sizes}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    # One key: safetensors writes several in random order, and equal models should be equal files.
    save_file(tensors, path, metadata={_HEADER: json.dumps(header)})
    path.chmod(0o644)  # safetensors writes for the owner alone; a package is read by others
    return path


def load_weights(folder: Path, task: type[Task]) -> Any:
    """The `nn.Module` of a folder, in evaluation mode and frozen, checked to belong to `task`."""
    safetensors = require("safetensors", task=task.name)
    path = folder if folder.suffix == ".safetensors" else folder / WEIGHTS_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{task.name}: no weights at {path}; "
            f"train them with `grasp train {task.name} --out {folder}`"
        )
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
        found, wanted = metadata.get("task"), task.name
        if found != wanted:
            raise ValueError(f"{path} holds a world model of {found!r}, not of {wanted!r}")
        found, wanted = metadata["architecture"], task.architecture.__name__
        if found != wanted:
            raise ValueError(f"{path} holds a {found}, but {task.name} is modelled by a {wanted}")
        tensors: dict[str, torch.Tensor] = {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
        }
    model = task.architecture(**metadata["sizes"])
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
