"""A copy of a network for attacks: BatchNorms folded into the weights before them, equal in eval mode up to rounding.

Attacks run the frozen network many times a step: here are no normalisation layers, no casts of weights, and gradients
with respect to the images only.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from astra_env.errors import InputError
from astra_env.models.layers import Normalize


class Folded(nn.Module):
    """Maps images (N, 3, H, W) in [0, 1] to what ``network`` gives in eval mode, in ``dtype``.

    Every BatchNorm that is all that follows a convolution or linear layer is folded into it. Other norms (those behind
    a sum in pre-activation networks) stay the network's own, so hold the network in eval mode meanwhile. The weights
    are those of the last :meth:`refresh`, always in the same tensors, which compiled code and CUDA graphs rely on.

    Args:
        network: anything ``torch.fx`` can trace; every network of this package is.
        dtype: of weights and activations.
        constants: arguments of ``network`` that are not images, such as ``branch="adv"``.

    Raises:
        InputError: when the network cannot be traced, or has no norm to fold.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32, **constants: Any) -> None:
        super().__init__()
        bound = _Bound(network, constants)
        graph, modules = _trace(bound), dict(bound.named_modules())
        folds = _folds(graph, modules)
        if not folds:
            raise InputError(
                "fold_batchnorm: needs BatchNorms behind convolutions (target.norm branch or single), "
                f"this {type(network).__name__} has none, as with target.norm group"
            )
        layers: list[_Layer] = []
        parts: dict[str, Any] = {}
        for node in [node for node in graph.nodes if node.op == "call_module"]:
            name = str(node.target)
            parts[name] = module = modules[name]
            if _is_layer(module):
                norm = folds.get(node)
                layer = _Layer(module, None if norm is None else modules[str(norm.target)], dtype)
                layers.append(layer)
                parts[name] = layer
        for node, norm in folds.items():
            norm.replace_all_uses_with(node)
            graph.erase_node(norm)
        self._layers = tuple(layers)
        self.inner = fx.GraphModule(parts, graph)
        self.refresh()

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's outputs on ``images``."""
        outputs: Tensor = self.inner(images)
        return outputs

    @torch.no_grad()
    def refresh(self) -> "Folded":
        """Take over the network's present weights and statistics; returns itself."""
        for layer in self._layers:
            layer.refresh()
        return self


class _Bound(nn.Module):
    """A network with all arguments but the images given."""

    def __init__(self, network: nn.Module, constants: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self._constants = constants

    def forward(self, images: Tensor) -> Any:
        return self.network(images, **self._constants)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)


class _Layer(nn.Module):
    """A convolution or linear layer and the norm behind it, if there is one, as one layer; takes any precision."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: nn.Conv2d | nn.Linear, norm: nn.Module | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._sources = (source, norm)  # in a tuple, so that they are not this module's own
        biased = norm is not None or source.bias is not None
        self.register_buffer("weight", torch.empty_like(source.weight, dtype=dtype, requires_grad=False))
        self.register_buffer("bias", source.weight.new_empty(len(source.weight), dtype=dtype) if biased else None)
        self._options: tuple[Any, ...] | None = None
        if isinstance(source, nn.Conv2d):
            self._options = (source.stride, source.padding, source.dilation, source.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self._options is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, *self._options)

    def refresh(self) -> None:
        """Compute the weights anew, in place; products are taken in the source's precision."""
        source, norm = self._sources[0], cast(Any, self._sources[1])
        weight, bias = source.weight, source.bias
        if norm is not None:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            bias = shift if bias is None else shift + bias * scale
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.copy_(cast(Tensor, bias))


def _trace(bound: _Bound) -> fx.Graph:
    try:
        return _Tracer().trace(bound)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise InputError(
            f"fold_batchnorm: torch.fx cannot trace {type(bound.network).__name__} ({error}); switch it off"
        ) from error


def _folds(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, fx.Node]:
    """Return the norm's node by the layer's, where a BatchNorm is all that uses the layer's output."""
    found = {}
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or not norm.affine or norm.running_mean is None:
            continue
        layer = node.args[0]
        if layer.op != "call_module" or len(layer.users) != 1:
            continue
        if _is_layer(modules[str(layer.target)]):
            found[layer] = node
    return found


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.padding_mode == "zeros")
