"""The two objectives that are compared, each as the squares of a residual vector.

    shooting    r(a)    = sqrt(w) (s_T(a) - g),   through the rollout
    lifted      r(s, a) = F(s_t, a_t) - s_{t+1}   for t < T - 1, and
                          sqrt(w) (F(s_{T-1}, a_{T-1}) - g),   one step each

The variables are the actions, and for the lifted one also the virtual states s_1 ... s_{T-1}; start
and goal are fixed. Both are zero for the same plans, those that arrive: the last residual of the
lifted one carries the goal's weights, so that features that do not count are free in both. At T = 1
they are the same function. Features of weight 0 leave no residual. States are scaled.

The lifted objective is differentiated in full here, for states too. (GRASP itself leaves out what
flows back through the state input, see docs/method.md.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grasp_planner.diagnostics.setting import Setting

Residual = Callable[[Tensor], Tensor]


class Objectives:
    """Both objectives of one problem, for any number of plans at once.

    Args:
        setting: world model and problems.
        problem: which of them.
        width: A.
        goal: `(D,)` scaled, in place of the problem's own.
    """

    def __init__(
        self, setting: Setting, problem: int, width: int, goal: Tensor | None = None
    ) -> None:
        self.model, self.dtype, _ = setting.precise(width)
        self.start = setting.scaled(setting.start[problem]).to(self.dtype)
        own = setting.scaled(setting.goal[problem])
        self.goal = (own if goal is None else goal).to(self.dtype)
        counted = setting.weight > 0
        self.counted = counted.nonzero().flatten()
        self.root_weight = setting.weight[counted].sqrt().to(self.dtype)

    def goal_residual(self, states: Tensor) -> Tensor:
        """`(N, D)` -> `(N, G)`, of the G features that count."""
        return self.root_weight * (states - self.goal).index_select(-1, self.counted)

    def shooting(self, actions: Tensor) -> Tensor:
        """`(N, T, A)` -> `(N, G)`."""
        start = self.start.expand(len(actions), -1)
        return self.goal_residual(self.model.rollout(start, actions)[:, -1])

    def lifted(self, states: Tensor, actions: Tensor) -> Tensor:
        """Virtual states `(N, T - 1, D)`, actions `(N, T, A)` -> `(N, (T - 1) D + G)`."""
        start = self.start.expand(len(actions), 1, -1)
        inputs = torch.cat([start, states], dim=1)
        prediction = self.model(inputs.flatten(0, 1), actions.flatten(0, 1)).view_as(inputs)
        defects = prediction[:, :-1] - states
        return torch.cat([defects.flatten(1), self.goal_residual(prediction[:, -1])], dim=1)

    def flat_shooting(self, steps: int) -> Residual:
        """The shooting residual of one plan's variables, `(T A,)` -> `(G,)`."""
        return lambda x: self.shooting(x.view(1, steps, -1))[0]

    def flat_lifted(self, steps: int) -> Residual:
        """The lifted residual of one plan's variables, virtual states first."""
        features = self.start.numel()

        def residual(x: Tensor) -> Tensor:
            states, actions = x.split([(steps - 1) * features, x.numel() - (steps - 1) * features])
            return self.lifted(states.view(1, -1, features), actions.view(1, steps, -1))[0]

        return residual


class LeastSquares:
    """`f(x) = |r(x)|^2` at one point: products with its second derivatives.

    With J the Jacobian of r, the Hessian is `2 J^T J + 2 sum_i r_i (d^2 r_i / dx^2)`; the first
    term is Gauss-Newton's. `J v` is the derivative, for u, of `J^T u`, which is linear in u: so
    every product is a backward pass through a graph that is built once, and nothing is assembled.

    Raises:
        ValueError: the world model is not twice differentiable by autograd, or a residual there is
            NaN or infinite.
    """

    def __init__(self, residual: Residual, x: Tensor) -> None:
        with torch.enable_grad():
            self.x = x.detach().clone().requires_grad_()
            self.residual = residual(self.x)
            self._dual = torch.zeros_like(self.residual).requires_grad_()
            self._gradient = _derivative(
                self.residual.square().sum(), self.x, None, create_graph=True
            )
            self._pulled = _derivative(self.residual, self.x, self._dual, create_graph=True)
        if not bool(self.residual.isfinite().all() & self._gradient.isfinite().all()):
            raise ValueError("world_model gives NaN or infinite residuals or gradients here")

    def jacobian(self) -> Tensor:
        """J `(m, n)`, assembled row by row: m backward passes."""
        rows = torch.eye(self.residual.numel(), dtype=self.x.dtype, device=self.x.device)
        return torch.stack([_derivative(self.residual, self.x, row) for row in rows])

    def hessian(self, v: Tensor) -> Tensor:
        """The Hessian times `v (n,)`."""
        return _derivative(self._gradient, self.x, v)

    def gramian(self, u: Tensor) -> Tensor:
        """`2 J J^T u`, of `u (m,)`: it has the nonzero eigenvalues of `2 J^T J`."""
        return 2 * _derivative(self._pulled, self._dual, _derivative(self.residual, self.x, u))


def _derivative(
    output: Tensor, of: Tensor, cotangent: Tensor | None, *, create_graph: bool = False
) -> Tensor:
    """`(d output / d of)^T cotangent`; the graph is kept for the next one.

    An absent gradient is no zero here: a backward pass that cannot be differentiated cuts the
    graph.
    """
    if not output.requires_grad:  # linear: nothing is left to differentiate
        return torch.zeros_like(of)
    try:
        (found,) = torch.autograd.grad(
            output,
            of,
            cotangent,
            retain_graph=True,
            create_graph=create_graph,
        )
    except RuntimeError as error:
        raise ValueError(
            "world_model must be twice differentiable by autograd: " + str(error).split("\n", 1)[0]
        ) from error
    return found
