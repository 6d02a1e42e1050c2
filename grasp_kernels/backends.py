"""Which backends this machine can run, and why not the others."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from grasp_kernels import native

FUSED_DTYPES = (torch.float32, torch.bfloat16)


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
    """`{"native": ..., "triton": ..., "reference": ...}`; probes, and may build, when called."""
    available, reason = native.status()
    return {
        "native": Backend(available, reason),
        "triton": _triton(),
        "reference": Backend(True, "plain torch, any float dtype, any device"),
    }


def choose(device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs the ops for tensors of this device and dtype."""
    if dtype in FUSED_DTYPES:
        if device.type == "cpu" and native.status()[0]:
            return "native"
        if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
            return "triton"
    return "reference"


def backend_for(device: torch.device, dtype: torch.dtype) -> str:
    """The same, with the reason: what a report should print."""
    name = choose(device, dtype)
    if name != "reference":
        return f"{name} ({backends()[name].reason})"
    if dtype not in FUSED_DTYPES:
        return f"reference ({dtype} is for the specification; float32 and bfloat16 are fused)"
    missing = "native" if device.type == "cpu" else "triton"
    return f"reference ({missing} {backends()[missing]})"


def _triton() -> Backend:
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "the triton package is not installed")
    if not torch.cuda.is_available():
        return Backend(False, "torch finds no CUDA or ROCm device")
    return Backend(True, f"{torch.cuda.get_device_name()}")
