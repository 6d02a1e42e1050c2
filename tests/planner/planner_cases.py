"""World models for planner tests, and what it takes to look over a planner's shoulder."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from grasp_planner import (
    CEMConfig,
    CEMPlanner,
    GradientConfig,
    GradientPlanner,
    GraspConfig,
    GraspPlanner,
    ICEMConfig,
    ICEMPlanner,
    LatCoConfig,
    LatCoPlanner,
    LiftedNewtonConfig,
    LiftedNewtonPlanner,
    MPPIConfig,
    MPPIPlanner,
    Plan,
    Planner,
    running,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

STATE, ACTION = 4, 2


def arithmetic(state: Tensor, action: Tensor) -> Tensor:
    """A point with velocity and position-dependent thrust, in sums and products of entries alone.

    So each row's bits are its own: matrix products and even exp differ in the last bit with the
    number of rows beside them, which is the model's business and not the planner's.
    """
    position, velocity = state[:, :2], state[:, 2:]
    velocity = velocity + 0.3 * action * (1.0 - 0.1 * position * position)
    return torch.cat([position + 0.3 * velocity, velocity], -1)


class MLP(nn.Module):
    """A small residual network, with parts that a careless planner would disturb."""

    action_features = ACTION

    def __init__(self, width: int = 16, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(STATE + ACTION, width, dtype=dtype)
        self.outer = nn.Linear(width, STATE, dtype=dtype)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(torch.cat([state, action], -1)))
        return state + 0.3 * self.outer(hidden)


def config(**changes: Any) -> GraspConfig:
    """A quick plan with every part of the loop in it."""
    settings: dict[str, Any] = {
        "horizon": 7,
        "iterations": 12,
        "candidates": 2,
        "action_features": ACTION,
        "action_low": -1.0,
        "action_high": 1.0,
        "sync_every": 5,
        "sync_steps": 2,
        "final_sync_steps": 3,
        "seed": 3,
    }
    return GraspConfig(**{**settings, **changes})


def problems(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    start = torch.randn(count, STATE, generator=generator, dtype=torch.float64)
    goal = torch.randn(count, STATE, generator=generator, dtype=torch.float64)
    return start.to(dtype), goal.to(dtype)


def solve(model: Any, count: int = 3, **changes: Any) -> Plan:
    dtype = changes.pop("dtype", torch.float32)
    return GraspPlanner(model, config(**changes)).plan(*problems(count, dtype))


# Every planner, quick, with every part of its loop in it. Of 7 steps, held by 2, the last is alone.
PROBLEM: dict[str, Any] = {
    "horizon": 7,
    "action_features": ACTION,
    "action_low": -1.0,
    "action_high": 1.0,
    "seed": 3,
}
SMALL_POPULATION: dict[str, Any] = {
    "hold": 2,
    "rounds": 2,
    "samples": 12,
    "resamples": 8,
    "candidates": 3,
    "refine_steps": 3,
    "pool": 6,
    "score_rollouts": 2,
    "effort_weight": 0.0,  # so that the best plan is the one that arrives best
}
KINDS: dict[str, tuple[type[Planner], Any, dict[str, Any]]] = {
    "cem": (CEMPlanner, CEMConfig, {"hold": 2, "samples": 12, "iterations": 4, "elites": 3}),
    "icem": (
        ICEMPlanner,
        ICEMConfig,
        {"hold": 2, "samples": 12, "least_samples": 6, "iterations": 4, "elites": 3, "kept": 0.5},
    ),
    "mppi": (MPPIPlanner, MPPIConfig, {"hold": 2, "samples": 12, "iterations": 4}),
    "gradient": (GradientPlanner, GradientConfig, {"hold": 2, "restarts": 3, "iterations": 6}),
    "latco": (
        LatCoPlanner,
        LatCoConfig,
        {
            "hold": 2,
            "restarts": 2,
            "iterations": 12,
            "multiplier_every": 1,
            "action_lr": 0.1,
            "last_lr": 0.5,
        },
    ),
    "lifted-newton": (LiftedNewtonPlanner, LiftedNewtonConfig, SMALL_POPULATION),
    "lifted-newton rollout": (
        LiftedNewtonPlanner,
        LiftedNewtonConfig,
        {**SMALL_POPULATION, "refinement": "rollout"},
    ),
    "lifted-newton matrix-free": (
        LiftedNewtonPlanner,
        LiftedNewtonConfig,
        {
            **SMALL_POPULATION,
            "products": "matrix-free",
            "hold": 4,
            "candidates": 2,
            "refine_steps": 1,
            "max_action_step": 0.5,  # no later step would take a long one back
        },
    ),
    "grasp": (GraspPlanner, config, {}),
    "grasp held": (GraspPlanner, config, {"hold": 2, "initial_actions_scale": 0.3}),
    "grasp gauss-newton": (GraspPlanner, config, {"sync_optimizer": "gauss-newton"}),
}
NEWTON = tuple(kind for kind in KINDS if "newton" in kind)
ITERATED = tuple(kind for kind in KINDS if not kind.startswith("lifted"))  # those have rounds


def planner(kind: str, model: Any, **changes: Any) -> Planner:
    make, settings, defaults = KINDS[kind]
    return make(model, settings(**{**PROBLEM, **defaults, **changes}))


PER_PROBLEM = ("actions", "states", "cost", "candidate_cost", "finite")


def per_problem(plan: Plan) -> list[Tensor]:
    """Everything a plan holds, the problem axis first."""
    parts = [getattr(plan, name) for name in PER_PROBLEM]
    return [*parts, plan.loss_history.movedim(1, 0), *plan.snapshots.values()]


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    size = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[one.element_size()]
    return torch.equal(one.contiguous().view(size), other.contiguous().view(size))


def same_plans(one: Plan, other: Plan) -> bool:
    pairs = zip(per_problem(one), per_problem(other), strict=True)
    return all(same_bits(a, b) for a, b in pairs)


def roll_out(model: Any, start: Tensor, actions: Tensor) -> Tensor:
    """`(B, T + 1, D)`, one step at a time."""
    states = [start]
    with torch.no_grad():
        for t in range(actions.shape[1]):
            states.append(model(states[-1], actions[:, t]))
    return torch.stack(states, 1)


# ---------------------------------------------------------------------------------------- onlookers


class HostReads:
    """Everything that would make the host wait for a device, by name, and after how many model
    calls.

    A read shows as an op that hands a value to the host (`.item()`, `bool()`, a mask, `nonzero`)
    or as a Python call that copies one there (`.cpu()`, `.tolist()`, `.numpy()`: no op on a CPU
    tensor).
    """

    OPS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "repeat_interleave.Tensor",
        "_is_all_true",
        "_is_any_true",
        "allclose",
    )
    CALLS = ("cpu", "tolist", "numpy", "item", "__array__", "__bool__", "__float__", "__int__")

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []
        self.model_calls = 0

    def watch(self, model: Any) -> Any:
        def watched(state: Tensor, action: Tensor) -> Tensor:
            self.model_calls += 1
            return model(state, action)

        return watched

    def during_the_loop(self) -> list[str]:
        """Between the first call of the model and its last."""
        return [name for calls, name in self.seen if 0 < calls < self.model_calls]

    def note(self, name: str) -> None:
        self.seen.append((self.model_calls, name))

    def __enter__(self) -> HostReads:
        outer = self

        class Ops(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                name = func._schema.name.split("::")[1]
                full = f"{name}.{func._schema.overload_name}"
                masked = name in ("index", "index_put", "index_put_") and any(
                    t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
                )
                if name in outer.OPS or full in outer.OPS or masked:
                    outer.note(name)
                return func(*args, **(kwargs or {}))

        class Calls(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                if getattr(func, "__name__", "") in outer.CALLS:
                    outer.note(func.__name__)
                return func(*args, **(kwargs or {}))

        self.modes = [Calls(), Ops()]
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


def a_device_that_is_slow(monkeypatch: Any) -> None:
    """Nobody learns in time which plans are good enough, as where the host runs ahead of a GPU."""
    monkeypatch.setattr(running.Arrivals, "learn", lambda arrivals, flags: None)


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made inside, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                weakref.finalize(storage, self._freed, key, size)
        self.peak = max(self.peak, self.now)
        return result
