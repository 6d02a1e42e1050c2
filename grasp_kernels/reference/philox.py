"""Philox4x32-10, the counter-based generator behind every random number of this library.

A counter-based generator is a pure function from a 128-bit counter and a 64-bit key to four 32-bit
words. There is no state to carry, so a draw can be addressed by *what it is for* (plan, iteration,
time step, feature) and is the same on every machine, in every tile and on every thread.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

torch has no uint32 arithmetic to speak of, so words are held in int64 tensors with values in
[0, 2**32). A product of two 32-bit words overflows int64, hence the split into 16-bit halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1, the key schedule
ROUNDS = 10
MASK = 0xFFFFFFFF


def multiply_high_low(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of `word * multiplier`, exactly."""
    low_part = word * (multiplier & 0xFFFF)  # < 2**48
    high_part = word * (multiplier >> 16)  # < 2**48
    shifted = high_part + (low_part >> 16)  # product >> 16, exactly; < 2**49
    return shifted >> 16, ((shifted << 16) | (low_part & 0xFFFF)) & MASK


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """The four words of each counter. `counter` words broadcast; `seed` is read as a uint64."""
    key_0, key_1 = seed & MASK, (seed >> 32) & MASK
    x0, x1, x2, x3 = counter
    for _ in range(ROUNDS):
        high_0, low_0 = multiply_high_low(x0, MULTIPLIER_0)
        high_1, low_1 = multiply_high_low(x2, MULTIPLIER_1)
        x0, x1, x2, x3 = high_1 ^ x1 ^ key_0, low_1, high_0 ^ x3 ^ key_1, low_0
        key_0, key_1 = (key_0 + WEYL_0) & MASK, (key_1 + WEYL_1) & MASK
    return x0, x1, x2, x3


def words_at(rows: Tensor, plan_ids: Tensor, features: int, seed: int, iteration: int) -> Tensor:
    """Words of every group of four features, int64 `(N, len(rows), 4 * ceil(features / 4))`.

    `rows` are the leading coordinate of the counter: time steps for white noise, mode numbers
    (from 0) for bridge noise. `plan_ids` is `(N,)` int64, any value from 0 to 2**63 - 1.
    """
    groups = -(-features // 4)
    device = plan_ids.device
    group = torch.arange(groups, device=device)
    shape = (len(plan_ids), len(rows), groups)
    counter = (
        ((rows[:, None] * groups + group) & MASK).expand(shape),
        torch.full((), iteration, device=device).expand(shape),
        (plan_ids & MASK)[:, None, None].expand(shape),
        ((plan_ids >> 32) & MASK)[:, None, None].expand(shape),
    )
    return torch.stack(philox4x32(counter, seed), dim=-1).flatten(-2)


def philox_words(
    plan_ids: Tensor, steps: int, features: int, *, seed: int, iteration: int, first_step: int = 0
) -> Tensor:
    """Bits of the words behind `gaussian_noise`, int32 `(N, steps, 4 * ceil(features / 4))`."""
    rows = torch.arange(first_step, first_step + steps, device=plan_ids.device)
    words = words_at(rows, plan_ids, features, seed, iteration)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
