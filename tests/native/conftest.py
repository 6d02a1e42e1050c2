"""The native backend against the float64 reference: the same arguments to both, at the op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from grasp_kernels import native
from grasp_kernels.ops import REFERENCE

FEATURES = (1, 2, 3, 4, 5, 7, 64, 67, 1000, 5000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/native" in item.nodeid:
            item.add_marker(pytest.mark.native)


@pytest.fixture(autouse=True)
def needs_native() -> None:
    available, reason = native.status()
    if not available:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_float64(value: Any) -> Any:
    """A floating tensor as float64, its own memory; anything else as it is."""
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double().clone() if is_float else value


def oracle(name: str, *args: Any) -> tuple[Any, list[Any]]:
    """The result of the float64 reference, and its arguments afterwards (some are written)."""
    copies = [torch.float64 if a is torch.float32 else in_float64(a) for a in args]
    return REFERENCE[name](*copies), copies


def step_arguments(
    plans: int,
    steps: int,
    features: int,
    *,
    dtype: torch.dtype = torch.float32,
    weighted: bool = True,
    noise: str = "white",
    pull: float = 0.0,
    free_terminal: bool = False,
    first_step: int = 0,
    horizon: int | None = None,
    seed: int = 0x9E3779B97F4A7C15 - 2**64,
) -> list[Any]:
    """Random positional arguments of `lifted_step_`."""
    generator = torch.Generator().manual_seed(plans * 1000 + steps * 100 + features)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    coefficients = torch.rand(plans, 3, generator=generator) * torch.tensor([0.3, 0.5, 0.2])
    return [
        normal(plans, steps + 1, features).to(dtype),
        normal(plans, steps, features).to(dtype),
        normal(plans, features).to(dtype),
        coefficients,
        2**40 * torch.arange(plans) + 2**62 + 3,
        normal(features).abs() if weighted else None,
        normal(steps).abs() if weighted else None,
        normal(plans, steps + 1, features).to(dtype) if pull else None,
        pull,
        seed,
        17,
        noise,
        3,
        first_step,
        first_step + steps if horizon is None else horizon,
        free_terminal,
    ]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, NaN and signed zero included."""
    integer = {4: torch.int32, 2: torch.int16, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
