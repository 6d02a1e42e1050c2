"""Which backends run a case on a device, and which do not, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from grasp_kernels import backends
from grasp_kernels.backends import choose

from . import lifted, mlp, newton
from .cases import Case
from .workload import Operands, Results, Workload

WORKLOADS: dict[str, Workload] = {**lifted.WORKLOADS, **mlp.WORKLOADS, **newton.WORKLOADS}


@dataclass(frozen=True)
class Variant:
    """One way to run a case. `own_noise`: it draws random numbers that are not the op's."""

    backend: str
    run: Callable[[Operands], Results]
    own_noise: bool = False


def variants(case: Case, device: torch.device, *, compile: bool = True) -> list[Variant]:
    """What runs, the public call first; the compiled baseline only with `compile`."""
    workload = WORKLOADS[case.op]
    fused = choose(device, case.dtype)
    found = [Variant(fused, lambda given: workload.fused(case, given))]
    if "eager" in case.baselines:
        found.append(Variant("eager", workload.plain(case, lambda part: part), own_noise=True))
    if "compiled" in case.baselines and compile:
        torch._dynamo.reset()  # a compiler that remembers other shapes makes this one dynamic
        plain = workload.plain(case, lambda part: torch.compile(part))
        found.append(Variant("compiled", plain, own_noise=True))
    return found


def absent() -> dict[str, str]:
    """The backends that this machine cannot run, each with its reason."""
    return {name: found.reason for name, found in backends().items() if not found}
