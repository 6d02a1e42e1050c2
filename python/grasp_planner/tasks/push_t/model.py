"""The world model of Push-T: exact arithmetic for the agent, a network for the block.

The agent does not feel the block, so its path during a step is known. The network sees that path
from the block, in the block's own frame, and says how the block moves there:

    inputs = path of the agent, its distances to the T, velocities, walls within the T's reach
    block moves by (dx, dy, turn) = touch * network(inputs) * change,   in its own frame

`touch` is 1 where the path meets the block and 0 a few px away from it: what is not touched stays
where it is, exactly. The T is its own mirror image, and so is the table: the network sees every
push as one from the right of the T, and its answer is mirrored back. So a push is learned once for
all places, headings and both sides of the T.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from grasp_planner.tasks.data import Array
from grasp_planner.tasks.push_t import environment as physics

#: Moments of a step, in substeps, at which the network sees the agent.
_MOMENTS = (0, 5, 10, 15, 20)
_POINTS = len(_MOMENTS)
_VECTORS = _POINTS + 2  # and the velocities before and after
#: px from a wall within which a corner of the block may meet it in this step.
_WALL_REACH = 25.0
#: Of the table's centre: farther out, along an axis, a wall is within reach.
_FREE = physics.WALL_HIGH - physics.TABLE_CENTRE - _WALL_REACH
_CORNERS = ((-60, -45), (60, -45), (60, -15), (15, 75), (-15, 75), (-60, -15))


def _vectors() -> Array:
    """(8, 4 + 2 vectors): from (agent, velocity, block, target) to all that is linear in them.

    That is the agent's next position and velocity, then the x of every vector and the y of every
    vector: the agent's places seen from the block, and its velocity before and after.
    """
    hold = [physics.agent_dynamics(k) for k in _MOMENTS]
    places = [(m[0, 0], m[0, 1], -1.0, 1.0 - m[0, 0]) for m in hold]
    speeds = [(m[1, 0], m[1, 1], 0.0, -m[1, 0]) for m in (hold[0], hold[-1])]
    per_axis = np.array(places + speeds)
    next_place = per_axis[_POINTS - 1] * (1.0, 1.0, 0.0, 1.0)
    axes = np.eye(2)
    columns = [np.kron(row, axis) for row in (next_place, per_axis[-1]) for axis in axes]
    columns += [np.kron(row, axis) for axis in axes for row in per_axis]
    return np.stack(columns, axis=1)


class PushTModel(nn.Module):
    """`F(state, action) -> next state`: `(B, 8), (B, 2) -> (B, 8)`, or any leading shape.

    State and action as of `environment.PushT`. The cosine and sine of the block's angle are
    brought to unit length first, so that planners may put states in between poses.
    """

    vectors: Tensor
    middle: Tensor
    half_sides: Tensor
    corners: Tensor
    change: Tensor
    state_scale: Tensor
    change_scale: Tensor

    def __init__(
        self,
        state_features: int = 8,
        action_features: int = 2,
        *,
        hidden: int = 128,
        layers: int = 3,
    ) -> None:
        super().__init__()
        if (state_features, action_features) != (8, 2):
            raise ValueError(
                "a PushTModel has 8 state and 2 action features, "
                f"not {state_features} and {action_features}"
            )
        if min(hidden, layers) < 1:
            raise ValueError("every size of a PushTModel must be at least 1")
        self.state_features, self.action_features = state_features, action_features
        self.hidden, self.layers = hidden, layers
        rectangles = np.array((physics.BAR, physics.STEM)).reshape(2, 2, 2)
        arm = physics.BLOCK_ARM
        constants = {
            "vectors": _vectors(),
            "middle": rectangles.mean(-1),
            "half_sides": np.ptp(rectangles, axis=-1) / 2,
            "corners": np.array(_CORNERS, float).T,
            "change": np.array((5.0, 5.0, 5.0 / arm)),  # px, px, rad: a typical push of one step
            # All in px, a turn counting as the way of a corner: then distances mean something.
            "state_scale": np.array((100.0,) * 6 + (100.0 / arm,) * 2),
            "change_scale": np.array((5.0,) * 6 + (5.0 / arm,) * 2),
        }
        for name, value in constants.items():
            self.register_buffer(name, torch.from_numpy(value).float(), persistent=False)
        widths = [2 * _VECTORS + _POINTS + 2 * len(_CORNERS)] + [hidden] * layers
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            modules += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.network = nn.Sequential(*modules, nn.Linear(widths[-1], 3))

    @property
    def sizes(self) -> dict[str, int]:
        """What the constructor takes to build another like it."""
        names = ("state_features", "action_features", "hidden", "layers")
        return {name: getattr(self, name) for name in names}

    def fit_normalisation(self, state: Tensor, action: Tensor, next_state: Tensor) -> None:
        """Nothing to fit: the units are known beforehand."""

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        target = state[..., :2] + physics.REACH * action
        target = target.clamp(physics.TARGET_LOW, physics.TARGET_HIGH)
        block, heading = state[..., 4:6], state[..., 6:8]
        heading = heading * (heading.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
        cos, sin = heading[..., :1], heading[..., 1:]

        agent, x, y = (torch.cat((state[..., :6], target), -1) @ self.vectors).split(
            (4, _VECTORS, _VECTORS), dim=-1
        )
        x, y = cos * x + sin * y, cos * y - sin * x
        left = x[..., :1] + x[..., _POINTS - 1 : _POINTS] < 0
        side = 1.0 - 2.0 * left.to(x.dtype)
        x = side * x
        off_centre = block - physics.TABLE_CENTRE
        distance = self._distance(x[..., :_POINTS], y[..., :_POINTS])
        walls = self._walls(side * off_centre[..., :1], off_centre[..., 1:], cos, side * sin)
        inputs = (x / 50.0, y / 50.0, torch.tanh(distance / 30.0), *walls)
        touch = torch.sigmoid(2.0 - distance.amin(-1, keepdim=True))
        right, down, turn = (self.change * touch * self.network(torch.cat(inputs, -1))).split(
            1, dim=-1
        )
        right, turn = side * right, side * turn

        moved = block + torch.cat((cos * right - sin * down, sin * right + cos * down), -1)
        turn_cos, turn_sin = torch.cos(turn), torch.sin(turn)
        return torch.cat(
            (agent, moved, cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin), -1
        )

    def _walls(
        self, block_x: Tensor, block_y: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(..., 1) each -> (..., corners) twice: how far each corner of the T is within reach of
        the walls, as a vector in the block's frame; 0 where it is not."""
        corner_x, corner_y = self.corners
        x = block_x + cos * corner_x - sin * corner_y
        y = block_y + sin * corner_x + cos * corner_y
        x = (x - x.clamp(-_FREE, _FREE)) / _WALL_REACH
        y = (y - y.clamp(-_FREE, _FREE)) / _WALL_REACH
        return cos * x + sin * y, cos * y - sin * x

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        """(..., points) each -> (..., points): px from the agent's rim to the T, about."""
        beyond = torch.stack((x, y), -1).unsqueeze(-2) - self.middle
        beyond = (beyond.abs() - self.half_sides).clamp(min=0.0)
        distance = (beyond.square().sum(-1) + 1e-6).sqrt().amin(-1)
        return distance - physics.AGENT_RADIUS
