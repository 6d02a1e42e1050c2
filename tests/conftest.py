"""Every test runs with poisoned allocations: an output that no kernel wrote shows as NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from grasp_planner.evaluation.units import Settings, Unit

LONGEST = [  # torchrun's ranks beside the compiler, not beside more of their own
    "test_sharded.py",
    "test_interpreter.py",
    "test_eval_under_torchrun.py",
    "test_mlp_aot.py",
    "test_plan_under_torchrun.py",
    "test_launch_path.py",
    "test_launch.py",
    "test_aot.py",
    "test_examples.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, or one of two workers is left alone with it at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    real = type(tensor) in (torch.Tensor, torch.nn.Parameter)  # leave fake tensors alone
    if real and tensor.is_floating_point() and tensor.device.type != "meta":
        with torch.no_grad():
            tensor.fill_(float("nan"))
    return tensor


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        allocate = getattr(owner, name)

        def poisoned(*args: Any, _allocate: Any = allocate, **kwargs: Any) -> torch.Tensor:
            if torch.compiler.is_compiling():
                return _allocate(*args, **kwargs)
            return _poison(_allocate(*args, **kwargs))

        monkeypatch.setattr(owner, name, poisoned)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`grasp eval` plans in this process, which saves the start of others."""

    from grasp_planner.evaluation.worker import Workshop  # not for tests that plan nothing

    def plan_here(
        settings: Settings,
        units: Sequence[Unit],
        workers: int,
        report: Callable[[dict[str, Any]], object],
    ) -> None:
        workshop = Workshop(settings)
        for unit in units:
            report(workshop.result(unit))

    monkeypatch.setattr("grasp_planner.cli.eval.plan_all", plan_here)
