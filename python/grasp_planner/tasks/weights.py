"""World models on disk: `weights.safetensors`, its sizes and its task in the header."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.tasks.requirements import require

WEIGHTS_FILE = "weights.safetensors"
_HEADER = "world_model"


def save_weights(model: ResidualMLP, folder: Path, *, task: str) -> Path:
    """Writes the model's tensors and what is needed to rebuild it; returns the file's path."""
    from safetensors.torch import save_file

    path = folder / WEIGHTS_FILE
    sizes = {
        "state_features": model.state_features,
        "action_features": model.action_features,
        "hidden": model.hidden,
        "layers": model.layers,
    }
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    # One key: safetensors writes several in random order, and equal models should be equal files.
    metadata = {_HEADER: json.dumps({"task": task, "architecture": "ResidualMLP", "sizes": sizes})}
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)  # safetensors writes for the owner alone; a package is read by others
    return path


def load_weights(folder: Path, *, task: str) -> ResidualMLP:
    """The model of a folder, in evaluation mode and frozen, checked to belong to `task`."""
    safetensors = require("safetensors", task=task)
    path = folder if folder.suffix == ".safetensors" else folder / WEIGHTS_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{task}: no weights at {path}; train them with `grasp train {task} --out {folder}`"
        )
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
        if metadata.get("task") != task:
            raise ValueError(
                f"{path} holds a world model of {metadata.get('task')!r}, not of {task!r}"
            )
        tensors: dict[str, torch.Tensor] = {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
        }
    model = ResidualMLP(**metadata["sizes"])
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
