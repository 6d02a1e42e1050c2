"""`MLPDynamics`: an MLP world model described for kernels.

Most latent world models in control are MLPs small enough to live inside a kernel. This is the one
description of them that every `mlp_*` op takes: what it can say is what the kernels can do, and
what it cannot say is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from grasp_kernels.reference.mlp_dynamics import ACTIVATIONS, forward, unpack

STORAGE = (torch.float32, torch.bfloat16, torch.float64)
MAX_WIDTH = 8192
MAX_LAYERS = 16


class UnsupportedModel(ValueError):
    """A model that `MLPDynamics` cannot describe; the message names the part."""


@dataclass(frozen=True, eq=False)
class MLPLayer:
    """`activation(LayerNorm(weight h + bias))`.

    Attributes:
        weight: `(width, inputs)`, float32, bfloat16 or float64.
        bias: `(width,)`; None is 0.
        norm: gain `(width,)`, shift `(width,)` and epsilon of a LayerNorm; None is none.
        activation: one of `ACTIVATIONS`: identity, relu, silu, gelu (the exact one), mish, tanh,
            elu (alpha 1), or simnorm.
        group: neighbours that share one softmax, for simnorm only; it divides `width`.
    """

    weight: Tensor
    bias: Tensor | None = None
    norm: tuple[Tensor, Tensor, float] | None = None
    activation: str = "identity"
    group: int = 0


@dataclass(frozen=True, eq=False)
class MLPDynamics:
    """`F(state, action) -> next state`, an MLP, and a world model like any other.

        next state = output_scale * network(((state, action) - input_mean) / input_scale)
                     + output_shift  (+ state, if residual)

    Tensors are kept by reference, and packed anew at every call: an optimiser step in between is
    seen. Build one by hand, or `from_sequential`.

    Attributes:
        layers: at least one; the last is `state_features` wide.
        action_features: A, how many of the inputs are actions.
        input_mean, input_scale: `(D + A,)`; None is 0 and 1. A scale must not be 0.
        output_scale, output_shift: `(D,)`; None is 1 and 0.
        residual: whether the state is added to the output.

    Raises:
        UnsupportedModel, TypeError, ValueError: a part is not supported, or does not fit; it is
            named.
    """

    layers: tuple[MLPLayer, ...]
    action_features: int
    input_mean: Tensor | None = None
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    output_shift: Tensor | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        _check(self)

    @property
    def state_features(self) -> int:
        return int(self.layers[-1].weight.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.layers[0].weight.dtype

    @property
    def device(self) -> torch.device:
        return self.layers[0].weight.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of states, actions and all arithmetic but the products of bfloat16 weights."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def structure(self) -> list[int]:
        """Sizes and kinds, as the ops take them (`reference.mlp_dynamics`)."""
        structure = [
            self.state_features,
            self.action_features,
            int(self.residual),
            len(self.layers),
        ]
        for layer in self.layers:
            code = ACTIVATIONS.index(layer.activation)
            norm = int(layer.norm is not None)
            structure += [layer.weight.shape[0], code, norm, layer.group]
        return structure

    @torch.no_grad()
    def packed(self) -> tuple[Tensor, Tensor, list[int]]:
        """`(weights, constants, structure)` with the values of this moment; a few microseconds."""
        like = self.layers[0].weight
        inputs = self.state_features + self.action_features

        def vector(value: Tensor | None, size: int, default: float) -> Tensor:
            if value is None:
                return torch.full((size,), default, dtype=self.compute_dtype, device=like.device)
            return value.detach().to(self.compute_dtype)

        constants = [
            vector(self.input_mean, inputs, 0.0),
            vector(self.input_scale, inputs, 1.0).reciprocal(),
            vector(self.output_scale, self.state_features, 1.0),
            vector(self.output_shift, self.state_features, 0.0),
        ]
        for layer in self.layers:
            width = layer.weight.shape[0]
            constants.append(vector(layer.bias, width, 0.0))
            if layer.norm is not None:
                gain, shift, epsilon = layer.norm
                constants += [vector(gain, width, 1.0), vector(shift, width, 0.0)]
                constants.append(vector(None, 1, epsilon))
        weights = torch.cat([layer.weight.detach().reshape(-1) for layer in self.layers])
        return weights, torch.cat(constants), self.structure

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """`(rows, D), (rows, A) -> (rows, D)`, or any leading shape; differentiable in both."""
        network = unpack(*self.packed())
        dtype = state.dtype
        state, action = state.to(self.compute_dtype), action.to(self.compute_dtype)
        return forward(network, state, action)[0].to(dtype)

    def in_units(self, scale: Tensor | None) -> MLPDynamics:
        """The same map for states that are divided by `scale (D,)`, on both sides."""
        if scale is None:
            return self
        scale = scale.to(self.compute_dtype)
        units = torch.cat([scale, scale.new_ones(self.action_features)])
        ones = torch.ones_like(units)
        mean = ones * 0 if self.input_mean is None else self.input_mean.to(units)
        spread = ones if self.input_scale is None else self.input_scale.to(units)
        gain = 1 if self.output_scale is None else self.output_scale.to(scale)
        shift = None if self.output_shift is None else self.output_shift.to(scale) / scale
        return replace(
            self,
            input_mean=mean / units,
            input_scale=spread / units,
            output_scale=gain / scale,
            output_shift=shift,
        )

    def to(self, dtype: torch.dtype) -> MLPDynamics:
        """The same model with its weights in another storage dtype (a copy, rounded to nearest)."""
        layers = [replace(layer, weight=layer.weight.detach().to(dtype)) for layer in self.layers]
        return replace(self, layers=tuple(layers))

    @classmethod
    def from_sequential(
        cls,
        network: nn.Sequential,
        *,
        action_features: int,
        input_mean: Tensor | None = None,
        input_scale: Tensor | None = None,
        output_scale: Tensor | None = None,
        output_shift: Tensor | None = None,
        residual: bool = False,
        check: bool = True,
    ) -> MLPDynamics:
        """From `Linear`, `LayerNorm` and activation modules.

        With `check`, both are run on the same numbers; without, the caller does it
        (`check_against`).

        Nested `Sequential`s are opened, `Identity` and `Dropout` (planning is evaluation) are
        passed over, and a module whose class is named `SimNorm` with an integer `dim` is the
        simplicial normalisation. The parameters are shared, not copied.

        Raises:
            UnsupportedModel: a module cannot be described; it is named.
            ValueError: the description does not give the output of `network`.
        """
        layers = _read_layers(network)
        dynamics = cls(
            layers, action_features, input_mean, input_scale, output_scale, output_shift, residual
        )
        if not check:
            return dynamics

        def model(state: Tensor, action: Tensor) -> Tensor:
            inputs = torch.cat((state, action), -1)
            like = dynamics.layers[0].weight
            if input_mean is not None:
                inputs = inputs - input_mean
            if input_scale is not None:
                inputs = inputs / input_scale
            output = network(inputs.to(like.dtype)).to(state.dtype)
            output = output if output_scale is None else output * output_scale
            output = output if output_shift is None else output + output_shift
            return output + state if residual else output

        training = [part for part in network.modules() if part.training]
        for part in training:
            part.training = False
        try:
            dynamics.check_against(model)
        finally:
            for part in training:
                part.training = True
        return dynamics

    @torch.no_grad()
    def check_against(self, model: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Raises ValueError unless `model` gives the same next states on 32 random rows."""
        generator = torch.Generator().manual_seed(0)

        def rows(first: int, size: int) -> Tensor:
            values = torch.randn(32, size, generator=generator).to(self.device, self.compute_dtype)
            part = slice(first, first + size)
            if self.input_scale is not None:
                values = values * self.input_scale[part]
            return values if self.input_mean is None else values + self.input_mean[part]

        state = rows(0, self.state_features)
        action = rows(self.state_features, self.action_features)
        expected, found = model(state, action), self(state, action)
        if expected.shape != found.shape:
            raise ValueError(
                f"the model returns {tuple(expected.shape)}, its description {tuple(found.shape)}"
            )
        # Errors of a sum of products in another order: small beside the outputs as a whole.
        tolerance = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.1}[self.dtype]
        change = expected - state if self.residual else expected
        error = float((expected - found).norm() / change.norm().clamp_min(1e-30))
        if not error <= tolerance:
            raise ValueError(
                f"the description differs from the model by {error:.2g} (relative, on random "
                f"inputs): the model does something that its modules do not show"
            )


def _read_layers(network: nn.Sequential) -> tuple[MLPLayer, ...]:
    layers: list[MLPLayer] = []
    for module in _flat(network):
        name = type(module).__name__
        if isinstance(module, (nn.Identity, nn.Dropout)):
            continue
        if isinstance(module, nn.Linear):
            if not isinstance(module.weight, nn.Parameter):  # parametrized or pruned
                raise UnsupportedModel(f"{name} with a computed weight is not supported")
            layers.append(MLPLayer(module.weight, module.bias))
            continue
        if not layers:
            raise UnsupportedModel(f"{name} before the first Linear is not supported")
        last = layers[-1]
        if last.activation != "identity":
            raise UnsupportedModel(f"{name} after {last.activation} is not supported")
        if isinstance(module, nn.LayerNorm):
            width = last.weight.shape[0]
            if last.norm is not None or tuple(module.normalized_shape) != (width,):
                raise UnsupportedModel(f"{module} after a layer of {width} is not supported")
            like = last.weight[:, 0]
            gain = torch.ones_like(like) if module.weight is None else module.weight
            shift = torch.zeros_like(like) if module.bias is None else module.bias
            layers[-1] = replace(last, norm=(gain, shift, module.eps))
        else:
            activation, group = _read_activation(module)
            layers[-1] = replace(last, activation=activation, group=group)
    return tuple(layers)


def _flat(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in _flat(child)]
    return [module]


def _read_activation(module: nn.Module) -> tuple[str, int]:
    """Its name, and the group of a simnorm."""
    name, group = type(module).__name__, getattr(module, "dim", None)
    if name == "SimNorm" and isinstance(group, int):
        return "simnorm", group
    if isinstance(module, nn.GELU) and module.approximate != "none":
        raise UnsupportedModel(f"{module} is not supported, only the exact GELU is")
    if isinstance(module, nn.ELU) and module.alpha != 1.0:
        raise UnsupportedModel(f"{module} is not supported, only alpha = 1 is")
    known = ("ReLU", "SiLU", "GELU", "Mish", "Tanh", "ELU")
    if name not in known or type(module) is not getattr(nn, name):
        raise UnsupportedModel(f"{name} is not supported")
    return name.lower(), 0


def _check(model: MLPDynamics) -> None:
    if not 1 <= len(model.layers) <= MAX_LAYERS:
        raise UnsupportedModel(f"layers must be 1 to {MAX_LAYERS}, got {len(model.layers)}")
    for index, layer in enumerate(model.layers):
        weight, name = layer.weight, f"layers[{index}]"
        if not isinstance(weight, Tensor) or weight.dim() != 2 or 0 in weight.shape:
            raise ValueError(f"{name}.weight must be a tensor (width, inputs)")
        if weight.dtype not in STORAGE:
            raise UnsupportedModel(f"{name}.weight must be one of {STORAGE}, got {weight.dtype}")
        if weight.dtype != model.dtype or weight.device != model.device:
            raise ValueError(
                f"{name}.weight must be {model.dtype} on {model.device} like the first layer's, "
                f"got {weight.dtype} on {weight.device}"
            )
        width, inputs = weight.shape
        if max(width, inputs) > MAX_WIDTH:
            raise UnsupportedModel(f"{name} is wider than {MAX_WIDTH}: {tuple(weight.shape)}")
        if index and inputs != model.layers[index - 1].weight.shape[0]:
            raise ValueError(
                f"{name}.weight has {inputs} inputs, the layer before it is "
                f"{model.layers[index - 1].weight.shape[0]} wide"
            )
        _check_vector(f"{name}.bias", layer.bias, width, model.device)
        if layer.norm is not None:
            gain, shift, epsilon = layer.norm
            _check_vector(f"{name}.norm gain", gain, width, model.device)
            _check_vector(f"{name}.norm shift", shift, width, model.device)
            if not (isinstance(epsilon, float) and 0 < epsilon < math.inf):
                raise ValueError(f"{name}.norm epsilon must be above 0, got {epsilon}")
        if layer.activation not in ACTIVATIONS:
            raise UnsupportedModel(f"{name}.activation {layer.activation!r} is not supported")
        simnorm = layer.activation == "simnorm"
        if (simnorm and (layer.group < 1 or width % layer.group)) or (not simnorm and layer.group):
            raise ValueError(
                f"{name}.group must divide its width {width} for simnorm and be 0 otherwise, "
                f"got {layer.group}"
            )
    inputs = model.layers[0].weight.shape[1]
    if not isinstance(model.action_features, int) or model.action_features < 1:
        raise ValueError(f"action_features must be at least 1, got {model.action_features!r}")
    if inputs != model.state_features + model.action_features:
        raise ValueError(
            f"the first layer must have D + A = {model.state_features} + {model.action_features} "
            f"inputs, got {inputs}"
        )
    for name, size in _sizes(model):
        _check_vector(name, getattr(model, name), size, model.device)


def _sizes(model: MLPDynamics) -> Sequence[tuple[str, int]]:
    inputs, outputs = model.state_features + model.action_features, model.state_features
    return (
        ("input_mean", inputs),
        ("input_scale", inputs),
        ("output_scale", outputs),
        ("output_shift", outputs),
    )


def _check_vector(name: str, value: Tensor | None, size: int, device: torch.device) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or tuple(value.shape) != (size,):
        raise ValueError(f"{name} must be a tensor ({size},), got {getattr(value, 'shape', value)}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")
