"""What a pilot minds, and how strong the current is, from the plans that the pilot makes.

A boat crosses a current past a rock. The pilot's plans weigh fuel along and across, and the rock,
in a way that nobody wrote down; the current is not known, either. Both are learned from a few noisy
plans: by gradient descent through the planner, until its plans are the pilot's.

    python examples/learn_through_plan.py                       # prints the curve, in seconds
    python examples/learn_through_plan.py --figure curve.png    # and draws it (needs matplotlib)
"""

import argparse

import torch
from grasp_planner import LiftedNewtonConfig, differentiable_plan
from torch import nn

ROCK = torch.tensor([0.0, 0.1], dtype=torch.float64)
TRUTH = {"fuel along": 0.2, "fuel across": 0.6, "fear of the rock": 2.0, "current": 0.08}
NOISE = 0.01  # of the actions that are shown


class Boat(nn.Module):
    """The world model: where the water takes a boat, by a current that is strongest midstream."""

    action_features = 2

    def __init__(self, current: float) -> None:
        super().__init__()
        self.current = nn.Parameter(torch.tensor(current, dtype=torch.float64))

    def forward(self, place, action):
        drift = self.current * (-place[:, 1:].square()).exp()
        return place + 0.15 * action + torch.cat([drift, torch.zeros_like(drift)], -1)


class Taste(nn.Module):
    """The cost beside the goal's: fuel along and across, and closeness to the rock."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.tensor(weights, dtype=torch.float64).log())

    def forward(self, places, actions):
        along, across = actions.square().mean(1).unbind(-1)
        close = (-(places - ROCK).square().sum(-1) / 0.2).exp().mean(1)
        return torch.stack([along, across, close], -1) @ self.log_weights.exp()


def crossings(count):
    """From one bank to the other."""
    start = torch.rand(count, 2, dtype=torch.float64) * torch.tensor([1.0, 0.2]) - 1.0
    return start, torch.rand(count, 2, dtype=torch.float64) * torch.tensor([1.0, 0.2]) + 0.2


def settings(taste):
    return LiftedNewtonConfig(horizon=15, hold=1, rounds=1, samples=64, cost=taste)


def draw(path, losses, learned):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    left.semilogy(losses, color="#2b6cb0")
    left.axhline(NOISE**2, color="#718096", linestyle=":", linewidth=1)
    left.text(0, NOISE**2 * 1.15, "noise of what was shown", color="#718096", fontsize=8)
    left.set(xlabel="plan", ylabel="mean squared difference of actions")
    for line, (name, value) in enumerate(TRUTH.items()):
        right.plot([row[line] for row in learned], color=f"C{line}", label=name)
        right.axhline(value, color=f"C{line}", linestyle=":", linewidth=1)
    right.set(xlabel="plan", ylabel="learned (dotted: the pilot's)", yscale="log")
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


parser = argparse.ArgumentParser()
parser.add_argument("--figure", help="where to draw the curve, a .png")
parser.add_argument("--iterations", type=int, default=50)
given = parser.parse_args()
torch.manual_seed(0)

pilot_boat, pilot = Boat(TRUTH["current"]), Taste(*list(TRUTH.values())[:3])
(start, goal), new = crossings(6), crossings(6)
with torch.no_grad():
    clean = differentiable_plan(pilot_boat, start, goal, config=settings(pilot)).actions
    unseen = differentiable_plan(pilot_boat, *new, config=settings(pilot)).actions
shown = clean + NOISE * torch.randn_like(clean)

boat, taste = Boat(0.02), Taste(0.4, 0.4, 0.4)
config = settings(taste)
optimizer = torch.optim.LBFGS(
    [*boat.parameters(), *taste.parameters()],
    max_iter=given.iterations,
    line_search_fn="strong_wolfe",
)
actions, losses, learned = None, [], []


def learn():
    """One search, then from plan to plan: the weights move a little, and so do the plans."""
    global actions
    plan = differentiable_plan(
        boat, start, goal, config=config, actions=actions, search=actions is None
    )
    actions = plan.actions.detach()
    loss = (plan.actions - shown).square().mean()
    optimizer.zero_grad()
    loss.backward()
    losses.append(loss.item())
    learned.append([*taste.log_weights.detach().exp().tolist(), boat.current.item()])
    print(f"{len(losses):3d}  loss {losses[-1]:.6f}  stationary {bool(plan.converged.all())}")
    return loss


optimizer.step(learn)
for (name, true), first, last in zip(TRUTH.items(), learned[0], learned[-1], strict=True):
    print(f"{name:17} began at {first:.3f}, learned {last:.3f}, the pilot's {true:.3f}")
with torch.no_grad():
    for name, where, by in (("before", Boat(0.02), Taste(0.4, 0.4, 0.4)), ("after", boat, taste)):
        ours = differentiable_plan(where, *new, config=settings(by)).actions
        print(f"other crossings, {name}: {(ours - unseen).square().mean():.6f}")
if given.figure:
    draw(given.figure, losses, learned)
