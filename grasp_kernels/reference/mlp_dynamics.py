"""An MLP world model from its packed parameters: the map, and its vector-Jacobian product.

    u  = ((state, action) - input_mean) * input_inverse_scale
    z  = W h + b                     per layer; h = u for the first
    z  = LayerNorm(z)                where the layer has one
    h  = activation(z)
    next state = output_scale * h + output_shift  (+ state, if residual)

With bfloat16 weights the other factor of every product is rounded to bfloat16 too, on the way there
and on the way back; sums and all else are in the compute dtype. That is what tensor cores and
AVX512_BF16 multiply, so every backend means the same.

Packed form, the same for every backend (`grasp_kernels.mlp.MLPDynamics` makes it):

    structure   D, A, residual, number of layers, then per layer: width, activation, norm, group
    weights     every layer's W (width, inputs), row by row, one after the other
    constants   input_mean (D + A), input_inverse_scale (D + A), output_scale (D), output_shift (D),
                then per layer: bias (width) and, with a norm: gain (width), shift (width), epsilon
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("identity", "relu", "silu", "gelu", "mish", "tanh", "elu", "simnorm")
"""By their code in `structure`. gelu is the exact one; elu has alpha 1; simnorm is the softmax over
groups of `group` neighbours (Lavoie et al., arXiv 2204.00616; TD-MPC2)."""


class Layer(NamedTuple):
    """`weight` in the storage dtype; the rest in the compute dtype."""

    weight: Tensor
    bias: Tensor
    norm: tuple[Tensor, Tensor, Tensor] | None
    """gain, shift and epsilon of a LayerNorm before the activation."""
    activation: str
    group: int


class Network(NamedTuple):
    """A packed model, unpacked: views, nothing is copied."""

    state_features: int
    action_features: int
    residual: bool
    input_mean: Tensor
    input_inverse_scale: Tensor
    output_scale: Tensor
    output_shift: Tensor
    layers: list[Layer]


class Saved(NamedTuple):
    """What the way back needs of one layer: the derivative of its activation and, where there is
    one, the normalised sums and 1 / deviation of its norm. For simnorm, the output instead."""

    slope: Tensor
    normalised: Tensor | None
    inverse_deviation: Tensor | None


def unpack(weights: Tensor, constants: Tensor, structure: Sequence[int]) -> Network:
    state_features, action_features, residual, count = structure[:4]
    position = 0

    def take(size: int) -> Tensor:
        nonlocal position
        position += size
        return constants[position - size : position]

    inputs = state_features + action_features
    mean, inverse = take(inputs), take(inputs)
    scale, shift = take(state_features), take(state_features)
    layers, place = [], 0
    for index in range(count):
        width, activation, norm, group = structure[4 + 4 * index : 8 + 4 * index]
        weight = weights[place : place + width * inputs].view(width, inputs)
        place += width * inputs
        bias = take(width)
        gain = (take(width), take(width), take(1)) if norm else None
        layers.append(Layer(weight, bias, gain, ACTIVATIONS[activation], group))
        inputs = width
    return Network(
        state_features, action_features, bool(residual), mean, inverse, scale, shift, layers
    )


def product(values: Tensor, weight: Tensor) -> Tensor:
    """`values (..., inputs) @ weight (inputs, width)`, in the dtype of `values`."""
    if weight.dtype == torch.bfloat16:
        values = values.to(torch.bfloat16).to(values.dtype)
    return values @ weight.to(values.dtype)


def activate(z: Tensor, activation: str, group: int) -> tuple[Tensor, Tensor]:
    """The activation and its derivative (for simnorm, whose Jacobian is not diagonal, itself)."""
    if activation == "identity":
        return z, torch.ones_like(z)
    if activation == "relu":
        return z.clamp(min=0.0), (z > 0).to(z.dtype)
    if activation == "silu":
        sigmoid = torch.sigmoid(z)
        return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))
    if activation == "gelu":
        cumulative = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
        return z * cumulative, cumulative + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    if activation == "mish":  # z tanh(softplus(z))
        squashed = torch.tanh(torch.nn.functional.softplus(z))
        return z * squashed, squashed + z * torch.sigmoid(z) * (1 - squashed * squashed)
    if activation == "tanh":
        squashed = torch.tanh(z)
        return squashed, 1 - squashed * squashed
    if activation == "elu":
        grown = torch.exp(z.clamp(max=0.0))
        return torch.where(z > 0, z, grown - 1), torch.where(z > 0, 1.0, grown)
    assert activation == "simnorm"
    share = torch.softmax(z.unflatten(-1, (-1, group)), dim=-1).flatten(-2)
    return share, share


def forward(network: Network, state: Tensor, action: Tensor) -> tuple[Tensor, list[Saved]]:
    """`(rows, D), (rows, A) -> (rows, D)`, and what `backward` needs."""
    h = (torch.cat((state, action), -1) - network.input_mean) * network.input_inverse_scale
    saved = []
    for layer in network.layers:
        z = product(h, layer.weight.T) + layer.bias
        normalised = inverse_deviation = None
        if layer.norm is not None:
            gain, shift, epsilon = layer.norm
            centred = z - z.mean(-1, keepdim=True)
            inverse_deviation = (centred.square().mean(-1, keepdim=True) + epsilon).rsqrt()
            normalised = centred * inverse_deviation
            z = normalised * gain + shift
        h, slope = activate(z, layer.activation, layer.group)
        saved.append(Saved(slope, normalised, inverse_deviation))
    prediction = network.output_scale * h + network.output_shift
    return (prediction + state if network.residual else prediction), saved


def backward(network: Network, saved: list[Saved], cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """`(dF/ds)^T cotangent` and `(dF/da)^T cotangent`, rows as in `forward`."""
    g = network.output_scale * cotangent
    for layer, (slope, normalised, inverse_deviation) in zip(
        reversed(network.layers), reversed(saved), strict=True
    ):
        if layer.activation == "simnorm":
            groups = (slope * g).unflatten(-1, (-1, layer.group))
            total = groups.sum(-1, keepdim=True).expand_as(groups).flatten(-2)
            g = slope * (g - total)
        else:
            g = slope * g
        if layer.norm is not None:
            assert normalised is not None
            assert inverse_deviation is not None
            g = g * layer.norm[0]
            along = (g * normalised).mean(-1, keepdim=True)
            g = inverse_deviation * (g - g.mean(-1, keepdim=True) - normalised * along)
        g = product(g, layer.weight)
    g = network.input_inverse_scale * g
    state_gradient, action_gradient = g.split((network.state_features, network.action_features), -1)
    return (state_gradient + cotangent if network.residual else state_gradient), action_gradient
