"""The activations of an MLP layer and their derivatives, elementwise, in float32.

A NaN goes through all of them, value and derivative, or through the value alone (relu).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def tanh(z):
    """Near 0 by its series (Cephes `tanhf`), where the exponentials would cancel."""
    y = z * z
    p = tl.fma(y, -5.70498872745e-3, 2.06390887954e-2)
    p = tl.fma(p, y, -5.37397155531e-2)
    p = tl.fma(p, y, 1.33314422036e-1)
    p = tl.fma(p, y, -3.33332819422e-1)
    near = tl.fma(p * y, z, z)
    decayed = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - decayed) / (1.0 + decayed)
    return tl.where(tl.abs(z) < 0.625, near, tl.where(z < 0, -far, far))


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """`activation(z)` and its derivative at z; simnorm is not elementwise and not here."""
    if ACTIVATION == "identity":
        return z, tl.full(z.shape, 1.0, tl.float32)
    elif ACTIVATION == "relu":
        value = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return value, (z > 0).to(tl.float32)
    elif ACTIVATION == "silu":
        s = sigmoid(z)
        return z * s, s * tl.fma(z, 1.0 - s, 1.0)
    elif ACTIVATION == "gelu":
        cumulative = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        return z * cumulative, tl.fma(z, density, cumulative)
    elif ACTIVATION == "mish":
        # t = tanh(softplus(z)) = n / (n + 2), n = e (e + 2), e = exp(z): nothing cancels. At z = 20
        # it is 1. And sigmoid(z) (1 - t^2) = 4 e (e + 1) / (n + 2)^2, since n + 1 = (e + 1)^2.
        grown = tl.exp(tl.minimum(z, 20.0))
        n = grown * (grown + 2.0)
        inverse = 1.0 / (n + 2.0)
        squashed = n * inverse
        slope = (4.0 * grown * inverse) * ((grown + 1.0) * inverse)
        return z * squashed, tl.fma(z, slope, squashed)
    elif ACTIVATION == "tanh":
        squashed = tanh(z)
        return squashed, tl.fma(-squashed, squashed, 1.0)
    else:
        tl.static_assert(ACTIVATION == "elu")
        grown = tl.exp(tl.minimum(z, 0.0, propagate_nan=tl.PropagateNan.ALL))
        return tl.where(z > 0, z, grown - 1.0), tl.where(z > 0, 1.0, grown)
