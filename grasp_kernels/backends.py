"""Which backends this machine can run, and why not the others."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from grasp_kernels import native


@dataclass(frozen=True)
class Backend:
    """True when the backend can run here; `reason` says how, or why not."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available

    def __str__(self) -> str:
        return f"{'available' if self.available else 'not available'}: {self.reason}"


def backends() -> dict[str, Backend]:
    """`{"native": ..., "triton": ..., "reference": ...}`; probes (and may build) only when called."""
    available, reason = native.status()
    return {
        "native": Backend(available, reason),
        "triton": _triton(),
        "reference": Backend(True, "plain torch, any float dtype, any device"),
    }


def _triton() -> Backend:
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "the triton package is not installed")
    if not torch.cuda.is_available():
        return Backend(False, "torch finds no CUDA or ROCm device")
    return Backend(True, f"{torch.cuda.get_device_name()}")
