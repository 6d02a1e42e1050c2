"""TD-MPC2: `act(obs, t0, eval_mode, task)` with any planner of this package.

    controller = TDMPC2Planner(agent, planner="grasp", horizon=20)
    controller.set_goal(goal_observation)             # towards a goal, by the dynamics alone
    controller.set_goal(None)                         # for the most reward, as the agent itself
    action = controller.act(obs, t0=t == 0, eval_mode=True, task=None)

Written to the signatures of nicklashansen/tdmpc2 (`tdmpc2.py`, `common/world_model.py`,
`common/layers.py`, `common/math.py`) and tested with a stand-in that has them; nothing of it is
imported. Its dynamics are an MLP of LayerNorm, Mish and SimNorm: `MLPDynamics` describes them, so
plans to a goal are made by whole-plan kernels. A task's embedding is constant while planning, so it
becomes a part of the first layer's bias.

Symbols: N plans, T steps, D latent features, A action features, E task features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from grasp_kernels import MLPDynamics, UnsupportedModel
from grasp_planner.adapters.frames import check_planner
from grasp_planner.base import Planner
from grasp_planner.goals import Anywhere
from grasp_planner.options import check_number, check_whole
from grasp_planner.plan import Plan
from grasp_planner.population import smallest
from grasp_planner.presets import PLANNERS
from grasp_planner.world_model import Wrapper, frozen


class TDMPC2Planner:
    """A TD-MPC2 agent's planner; a plan is made in every step, from what is left of the last one.

    With a goal, a plan costs the squared distance of its last latent to the goal's. Without, it
    costs minus its return, `sum_t discount^t reward_t + discount^T value`: rewards by the model's
    head, the value by the mean of all its Q functions at the policy's mean action, so that the same
    plan costs the same each time. (TD-MPC2 takes two Q functions and an action at random.)

    Args:
        agent: has a `model`, TD-MPC2's `WorldModel`, which is left as it was found, and, where
            there is no goal, `discount`, a number or one per task.
        horizon: T. >= 1; None is the agent's own, `model.cfg.horizon`.
        planner: "grasp", "lifted-newton", "cem", "icem", "mppi", "gradient", "latco" or
            "grasp-paper". "grasp".
        settings: of that planner's config, by name. Actions are within -1 and 1.
        policy_samples: how many rollouts of the policy compete with what is left of the last plan
            to be the warm start; where there is no goal. >= 0; 0.
        exploration: the standard deviation of the noise on an action unless `eval_mode`. >= 0;
            0.05, TD-MPC2's least.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        agent: Any,
        *,
        horizon: int | None = None,
        planner: str = "grasp",
        settings: Mapping[str, Any] | None = None,
        policy_samples: int = 0,
        exploration: float = 0.05,
    ) -> None:
        model = getattr(agent, "model", None)
        if not isinstance(model, nn.Module) or not hasattr(model, "_dynamics"):
            raise TypeError(f"agent must have a TD-MPC2 world model, got {type(model).__name__}")
        cfg: Any = model.cfg
        if getattr(cfg, "episodic", False):
            raise ValueError("agent must not be episodic: terminations are not planned for")
        self.agent = agent
        self.model: Any = model
        self.horizon = check_whole("horizon", cfg.horizon if horizon is None else horizon, 1)
        self.policy_samples = check_whole("policy_samples", policy_samples, 0)
        self.exploration = check_number("exploration", exploration, 0.0)
        self.device = next(model.parameters()).device
        self.last_plan: Plan | None = None
        bounds = ("action_low", "action_high")  # which are the task's
        self._kind, self._settings = check_planner(planner, settings, bounds)
        self._goal: Tensor | None = None
        self._planners: dict[Any, tuple[LatentDynamics, Planner]] = {}
        self._plans = 0

    @torch.no_grad()
    def set_goal(self, obs: Tensor | None, task: int | None = None) -> None:
        """Plans lead to the latent of `obs` from now on; None: to the most reward."""
        self.last_plan = None
        self._planners = {}
        self._goal = None
        if obs is not None:
            with frozen(self.model):
                self._goal = self._encoded(obs, self._task(task))

    @torch.no_grad()
    def act(
        self, obs: Tensor, t0: bool = False, eval_mode: bool = False, task: int | None = None
    ) -> Tensor:
        """The action `(A,)` to take now, on the CPU; `obs` is encoded once.

        Args:
            obs: one observation, without a batch dimension.
            t0: whether an episode begins: there is no last plan then.
            eval_mode: whether the action is without noise.
            task: which one, of a multitask agent.

        Raises:
            TypeError, ValueError: an argument is wrong; it is named.
        """
        which = self._task(task)
        with frozen(self.model):
            z = self._encoded(obs, which)
            dynamics, planner = self._planner_of(task, which)
            warm = None
            if not t0 and self.last_plan is not None:
                left = self.last_plan.actions[:, 1:]
                warm = torch.cat((left, torch.zeros_like(left[:, :1])), 1)
            if self.policy_samples and self._goal is None:
                warm = self._best_warm_start(dynamics, z, warm)
            ids = torch.tensor([self._plans], device=z.device)
            goal = Anywhere() if self._goal is None else self._goal
            self.last_plan = planner.plan(z, goal, actions=warm, plan_ids=ids)
        self._plans += 1
        action = self.last_plan.actions[0, 0]
        if not eval_mode:
            noise = self.exploration * torch.randn_like(action)
            action = torch.minimum(torch.maximum(action + noise, -dynamics.mask), dynamics.mask)
        return action.cpu()

    def _encoded(self, obs: Tensor, task: Tensor | None) -> Tensor:
        if not isinstance(obs, Tensor):
            raise TypeError(f"obs must be a tensor, got {type(obs).__name__}")
        z: Tensor = self.model.encode(obs.to(self.device)[None], task)
        if z.dim() != 2:
            raise ValueError(
                f"obs must be one observation, without a batch dimension, got {tuple(obs.shape)}, "
                f"of which a latent is {tuple(z.shape)}"
            )
        return z

    def _task(self, task: int | None) -> Tensor | None:
        """As the model wants it, `(1,)`."""
        if not self.model.cfg.multitask:
            if task is not None:
                raise ValueError(f"task is for a multitask agent, which this is not, got {task}")
            return None
        if task is None:
            raise ValueError("task must be given: the agent is a multitask one")
        most = len(self.model._action_masks) - 1
        return torch.tensor([check_whole("task", task, 0, most, "the last")], device=self.device)

    def _planner_of(self, name: int | None, task: Tensor | None) -> tuple[LatentDynamics, Planner]:
        if name not in self._planners:
            dynamics = LatentDynamics(self.model, task)
            settings = {**self._settings, "horizon": self.horizon}
            settings["action_high"] = tuple(dynamics.mask.tolist())
            settings["action_low"] = tuple((-dynamics.mask).tolist())
            if self._goal is None:
                discount = self.agent.discount
                if isinstance(discount, Tensor) and discount.dim():
                    discount = discount[task]
                dynamics.discount = float(discount)
                settings["cost"] = dynamics.cost
            planner, config = PLANNERS[self._kind]
            self._planners[name] = dynamics, planner(dynamics, config(**settings))
        return self._planners[name]

    def _best_warm_start(self, dynamics: LatentDynamics, z: Tensor, warm: Tensor | None) -> Tensor:
        """The least dear of the policy's plans and `warm (1, T, A)`, which is the last row."""
        samples = self.policy_samples
        states, actions = [z.expand(samples if warm is None else samples + 1, -1)], []
        for t in range(self.horizon):
            action = dynamics.policy(states[-1][:samples])[0]
            actions.append(action if warm is None else torch.cat((action, warm[:, t])))
            states.append(dynamics(states[-1], actions[-1]))
        plans = torch.stack(actions, 1)
        cost = dynamics.cost(torch.stack(states, 1), plans)
        return plans[smallest(cost[None], 1)[0]]


class LatentDynamics(Wrapper):
    """`next` of a TD-MPC2 world model in one task, and what plans earn by it.

    Planners take `mlp_dynamics()` for their kernels, after they have compared it with `next`.

    Attributes:
        world_model: the model. task: `(1,)` or None. discount: per step.
        mask: `(A,)`, 1 for the actions that the task has, else 0.
        action_features: A.
    """

    def __init__(self, model: Any, task: Tensor | None = None, discount: float = 1.0) -> None:
        self.world_model = model
        self.task = task
        self.discount = discount
        self.action_features = int(model.cfg.action_dim)
        like = next(model.parameters())
        ones = torch.ones(self.action_features, device=like.device)
        self.mask = ones if task is None else model._action_masks[task][0].to(ones)

    def __call__(self, z: Tensor, action: Tensor) -> Tensor:
        """Next latents `(rows, D)`."""
        model: Any = self.world_model
        latent: Tensor = model.next(z, action, self.task)
        return latent

    @torch.no_grad()
    def mlp_dynamics(self) -> MLPDynamics:
        """The same for kernels, with the weights of this moment.

        Raises:
            UnsupportedModel: a layer cannot be described; it is named.
        """
        model: Any = self.world_model
        dtype = next(model._dynamics.parameters()).dtype
        if dtype not in (torch.float32, torch.float64):
            raise UnsupportedModel(f"the model is computed in {dtype}")
        parts: list[nn.Module] = []
        for layer in model._dynamics:
            # A NormedLinear is a Linear with the two beside it that it applies.
            parts += [layer, *(getattr(layer, n) for n in ("ln", "act") if hasattr(layer, n))]
        network = nn.Sequential(*parts)
        width = self.action_features
        if self.task is None:
            return MLPDynamics.from_sequential(network, action_features=width, check=False)
        embedding = model._task_emb(self.task.long())[0]
        more = len(embedding)
        whole = MLPDynamics.from_sequential(network, action_features=more + width, check=False)
        first = whole.layers[0]
        of_state, of_task, of_action = first.weight.split(
            [whole.state_features, more, width], dim=1
        )
        bias = of_task @ embedding + (0 if first.bias is None else first.bias)
        first = replace(first, weight=torch.cat([of_state, of_action], 1), bias=bias)
        return replace(whole, layers=(first, *whole.layers[1:]), action_features=width)

    def policy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """A sample of the policy's actions `(rows, A)`, and its mean."""
        model: Any = self.world_model
        found = model.pi(z, self.task)
        if isinstance(found[1], Tensor):  # (mean, sample, ...), before there was an `info`
            return found[1], found[0]
        return found[0], found[1]["mean"]

    def cost(self, states: Tensor, actions: Tensor) -> Tensor:
        """Minus the return `(N,)` of `states (N, T + 1, D)`, `actions (N, T, A)`."""
        model: Any = self.world_model
        plans, steps = actions.shape[:2]
        last = states[:, -1]
        logits = model.reward(states[:, :-1].flatten(0, 1), actions.flatten(0, 1), self.task)
        rewards = two_hot_inverse(logits, model.cfg).view(plans, steps)
        values = model.Q(last, self.policy(last)[1], self.task, return_type="all")
        value = two_hot_inverse(values, model.cfg).mean(0)
        powers = self.discount ** torch.arange(steps + 1, device=states.device)
        return -(rewards * powers[:-1]).sum(1) - powers[-1] * value


def two_hot_inverse(logits: Tensor, cfg: Any) -> Tensor:
    """Numbers `(...)` of logits `(..., bins)` over evenly spaced symlog values.

    Of one bin it is symexp of the number itself, of none the number: as TD-MPC2's `num_bins` has
    it. symexp(x) = sign(x) (exp(|x|) - 1) (Hafner et al., arXiv 2301.04104).
    """
    if cfg.num_bins == 0:
        return logits[..., 0]
    value = logits[..., 0]
    if cfg.num_bins > 1:
        bins = torch.linspace(
            cfg.vmin, cfg.vmax, cfg.num_bins, device=logits.device, dtype=logits.dtype
        )
        value = (logits.softmax(-1) * bins).sum(-1)
    return value.sign() * value.abs().expm1()
