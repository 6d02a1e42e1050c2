"""Held actions: a plan of T steps whose actions are constant over blocks of `hold` steps."""

from __future__ import annotations

from torch import Tensor


def hold_actions(blocks: Tensor, hold: int, horizon: int) -> Tensor:
    """One action per block `(..., K, A)` to one per step `(..., T, A)`."""
    if hold == 1:
        return blocks
    return blocks.repeat_interleave(min(hold, horizon), -2)[..., :horizon, :]


def first_of_blocks(actions: Tensor, hold: int) -> Tensor:
    """Actions `(..., T, A)` that are constant over blocks, to one per block `(..., K, A)`."""
    return actions[..., ::hold, :]


def sum_blocks(values: Tensor, hold: int) -> Tensor:
    """Sums over blocks, `(N, T, A)` to `(N, K, A)`: the gradient for one action per block."""
    if hold == 1:
        return values
    plans, steps, features = values.shape
    hold = min(hold, steps)
    blocks = -(-steps // hold)
    padded = values.new_zeros(plans, blocks * hold, features)
    padded[:, :steps] = values
    return padded.view(plans, blocks, hold, features).sum(2)


def average_blocks(actions: Tensor, hold: int) -> Tensor:
    """The nearest actions `(N, T, A)` that are constant over blocks; to the bit where they are."""
    if hold == 1:
        return actions
    first = first_of_blocks(actions, hold)
    steps, blocks = actions.shape[1], first.shape[1]
    sums = sum_blocks(actions - hold_actions(first, hold, steps), hold)
    counts = sums.new_full((blocks, 1), float(hold))
    counts[-1] = steps - hold * (blocks - 1)
    return hold_actions(first + sums / counts, hold, steps)
