"""The world model's calls, and a lifted iteration around one, compiled or captured.

    "torch"       torch.compile of the model's call with its gradient, and in `GraspPlanner` of the
                  whole lifted iteration: model, fused step and VJP in one graph
    "cuda-graph"  the model's call and its gradient as CUDA graphs, one pair per shape of its input,
                  of which the last few are kept

Both live as long as their planner: a new goal is another number in the same graph, a new batch
size another graph beside the first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import lifted_step_

MOST_GRAPHS = 8  # per planner; a graph keeps its own memory
Call = Callable[..., Any]


class Accelerated:
    """How a planner calls its world model; see the module.

    Args:
        world_model: `F(state, action[, noise])`.
        how: "none", "torch" or "cuda-graph".
    """

    def __init__(self, world_model: Call, how: str) -> None:
        self.how = how
        self.call: Call = world_model
        if how == "torch":
            self.call = torch.compile(world_model)
        elif how == "cuda-graph":
            self.call = Captured(world_model)
        self._lifted: Call | None = None

    @property
    def lifted(self) -> Call | None:
        """`lifted_block`, compiled; None where it is not to be."""
        if self.how == "torch" and self._lifted is None:
            self._lifted = torch.compile(lifted_block)
        return self._lifted


def lifted_block(
    model: Call,
    block: Tensor,
    states: Tensor,
    actions: Tensor,
    goal: Tensor,
    extra: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """A lifted iteration of some plans and steps: their losses `(n, t)`, and gradients `(n, t, A)`.

    `block (n, t + 1, D)` moves in place; `states (n, t, D)` is a copy of what it was, `actions (n,
    t, A)`; `settings` are the fused step's. By `torch.func`, which compiles in one piece.
    """

    def step(given: Tensor) -> Tensor:
        return model(states.flatten(0, 1), given.flatten(0, 1)).view_as(states)

    prediction, pull = torch.func.vjp(step, actions)[:2]
    loss, cotangent = lifted_step_(
        block,
        prediction,
        goal,
        state_gradient=extra,
        state_gradient_scale=0.0 if extra is None else 1.0,
        per_step=True,
        **settings,
    )
    (gradient,) = pull(cotangent)
    return loss.total, gradient


class Captured:
    """A model whose calls on a GPU replay CUDA graphs; elsewhere it is called as it is."""

    def __init__(self, world_model: Call) -> None:
        self.world_model = world_model
        self.graphs: OrderedDict[Any, Call] = OrderedDict()

    @staticmethod
    def on_gpu(tensor: Tensor) -> bool:
        return tensor.device.type == "cuda"

    def __call__(self, *given: Tensor) -> Any:
        if not self.on_gpu(given[0]):
            return self.world_model(*given)
        wants = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        needs = [t.requires_grad and wants for t in given]
        shapes = tuple((tuple(t.shape), t.dtype) for t in given)
        key = (given[0].device, shapes, tuple(needs))
        if key not in self.graphs:
            samples = tuple(
                torch.randn_like(t, memory_format=torch.contiguous_format).requires_grad_(need)
                for t, need in zip(given, needs, strict=True)
            )
            self.graphs[key] = torch.cuda.make_graphed_callables(
                self._next_state, samples, allow_unused_input=True
            )
            if len(self.graphs) > MOST_GRAPHS:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        # A graph writes its answer where it wrote the last one.
        found: Tensor = self.graphs[key](*(t.contiguous() for t in given))
        return found.clone()

    def _next_state(self, *given: Tensor) -> Tensor:
        """The model's answer without extras: graphs return tensors."""
        found: Any = self.world_model(*given)
        return found[0] if isinstance(found, tuple) else found
