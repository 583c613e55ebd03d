"""The balls an attack stays in, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from astra_env.errors import ConfigError
from astra_env.registry import Registry

TINY = 1e-12


class Norm(Protocol):
    """A norm's projection, steepest direction and uniform start; all tensors (N, C, H, W), epsilon (N, 1, 1, 1)."""

    def project(self, delta: Tensor, epsilon: Tensor) -> Tensor:
        """Return the nearest perturbation inside the ball."""

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the step of unit length that ascends steepest."""

    def uniform(self, images: Tensor, epsilon: Tensor | float, generator: torch.Generator | None) -> Tensor:
        """Return a random perturbation inside the ball."""


NORMS: Registry[Callable[[], Norm]] = Registry("norm")
"""Classes of norms without arguments; ``module:MyNorm`` is imported."""


@NORMS.register("linf")
@dataclass(frozen=True)
class Linf:
    """The maximum norm: every pixel may move by epsilon."""

    def project(self, delta: Tensor, epsilon: Tensor) -> Tensor:
        """Clip every pixel to +-epsilon."""
        return torch.minimum(torch.maximum(delta, -epsilon), epsilon)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient's sign."""
        return gradient.sign()

    def uniform(self, images: Tensor, epsilon: Tensor | float, generator: torch.Generator | None) -> Tensor:
        """Draw every pixel uniformly from +-epsilon."""
        return (2 * _rand(images, generator) - 1) * epsilon


@NORMS.register("l2")
@dataclass(frozen=True)
class L2:
    """The Euclidean norm of the whole image."""

    def project(self, delta: Tensor, epsilon: Tensor) -> Tensor:
        """Scale perturbations longer than epsilon back to the sphere."""
        return delta * (epsilon / _length(delta).clamp_min(TINY)).clamp_max(1)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient scaled to length 1 (zero stays zero)."""
        return gradient / _length(gradient).clamp_min(TINY)

    def uniform(self, images: Tensor, epsilon: Tensor | float, generator: torch.Generator | None) -> Tensor:
        """Draw uniformly from the ball."""
        device = generator.device if generator is not None else images.device
        normal = torch.randn(images.shape, generator=generator, device=device).to(images)
        radius = _rand(images[:, :1, :1, :1], generator) ** (1 / images[0].numel())
        return self.direction(normal) * radius * epsilon


def get_norm(name: str, section: str = "") -> Norm:
    """Return the norm called ``name``; raises ConfigError, naming the field ``norm`` of ``section``, for another name.

    Its constructor takes no arguments.
    """
    try:
        return NORMS.get(name)()
    except ConfigError as error:
        raise ConfigError(f"{section}{error}") from error


def _length(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _rand(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.rand(like.shape, generator=generator, device=device).to(like)
