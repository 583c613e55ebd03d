"""Target networks around an encoder that is not ours: a user's function or one of timm's models."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.errors import ConfigError, InputError
from astra_env.models.layers import BRANCHES, ChannelStatistics, Normalize, initialize
from astra_env.models.target import HEADS
from astra_env.registry import Registry

FIELD = "target.backbone"
TIMM = "timm:"
_BACKBONES: Registry[Callable[..., nn.Module]] = Registry(FIELD)
_UNFIT = (AssertionError, ValueError, TypeError, IndexError, AttributeError, RuntimeError)
"""What an encoder raises for images of a size that it was not made for."""


class BackboneTarget(nn.Module):
    """Any encoder with the interface of the target network: its norms are its own, the same for both branches.

    Args:
        name: what it is called in messages.
        backbone: has ``embed(images)``, or is called; images (N, 3, H, W) -> embeddings (N, embed_dim).
        embed_dim: length of the embeddings.
        feature_dim: length of the projected features.
        hidden_dim: width of the projection's first layer.
        norm: of the projection, as in the ResNet target network.
        normalize: (mean, std) per channel applied to inputs in [0, 1], or None.
        head: form of the projection, one of ``HEADS``.
    """

    branches = BRANCHES

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        embed_dim: int,
        *,
        feature_dim: int,
        hidden_dim: int,
        norm: str,
        normalize: ChannelStatistics | None,
        head: str,
    ) -> None:
        super().__init__()
        self.name, self.norm = name, norm
        self.embed_dim, self.feature_dim = embed_dim, feature_dim
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize)
        self.backbone: Any = backbone
        self.fc = HEADS[head](embed_dim, hidden_dim, feature_dim, norm)

    def forward(self, views: Tensor, branch: str = "clean") -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> projected features (N, feature_dim)."""
        return self.project(self.embed(views, branch), branch)

    def embed(self, views: Tensor, branch: str = "clean") -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> embeddings (N, embed_dim); raises InputError for what it cannot take."""
        _index(branch)
        images = self.normalize(views)
        found = self.backbone.embed(images) if hasattr(self.backbone, "embed") else self.backbone(images)
        if not isinstance(found, Tensor) or found.shape != (len(views), self.embed_dim):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"{FIELD}: {self.name!r} must give embeddings ({len(views)}, {self.embed_dim}), it gave {shape}; pool "
                "and flatten them, and let embed_dim say their length"
            )
        return found

    def project(self, embedding: Tensor, branch: str = "clean") -> Tensor:
        """Embeddings (N, embed_dim) -> projected features (N, feature_dim)."""
        return self.fc(embedding, _index(branch))

    @torch.no_grad()
    def require_size(self, side: int, device: torch.device) -> None:
        """Raise InputError, naming the reason, unless the encoder takes images of this side; nothing in it changes."""
        was_training = {module: module.training for module in self.modules()}
        try:
            self.eval().embed(torch.zeros(2, 3, side, side, device=device))
        except _UNFIT as error:
            if isinstance(error, InputError):
                raise
            reason = " ".join(str(error).split())
            raise InputError(f"{FIELD}: {self.name!r} cannot take images of {side} x {side} ({reason})") from error
        finally:
            for module, training in was_training.items():
                module.training = training


def own_target(name: str, width: int, generator: torch.Generator, **sizes: Any) -> BackboneTarget:
    """Build a target network around ``module:function`` or ``timm:NAME``; the weights depend on the generator alone.

    The function is called with those of these arguments that it names: ``num_classes=1``, ``normalize=None`` (inputs
    are normalised before it), ``width`` and ``generator``. It returns a module with ``embed(images) -> (N, E)``,
    or one that gives embeddings when called, and ``embed_dim`` (or timm's ``num_features``). A last layer ``linear``
    beside ``embed`` is taken off, so that functions for ``network.name`` of supervised runs serve as well.

    Raises:
        ConfigError: for a name that cannot be imported, or what is no encoder.
    """
    with _seeded(generator):
        backbone = _timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else _called(name, width, generator)
        embed_dim = getattr(backbone, "embed_dim", getattr(backbone, "num_features", None))
        if not isinstance(embed_dim, int) or embed_dim < 1:
            raise ConfigError(f"{FIELD}: {name!r} must say how long embeddings are by embed_dim, got {embed_dim!r}")
        if hasattr(backbone, "embed") and isinstance(getattr(backbone, "linear", None), nn.Linear):
            backbone.linear = nn.Identity()
        target = BackboneTarget(name, backbone, embed_dim, **sizes)
    initialize(target.fc, generator, fan_out=True)
    return target


def _called(name: str, width: int, generator: torch.Generator) -> nn.Module:
    function = _BACKBONES.get(name)
    known = {"num_classes": 1, "normalize": None, "width": width, "generator": generator}
    try:
        named = inspect.signature(function).parameters
        backbone = function(**{key: value for key, value in known.items() if key in named})
    except TypeError as error:
        raise ConfigError(
            f"{FIELD}: {name!r} cannot be called ({error}); it may take {', '.join(known)} and what has a default"
        ) from error
    if not isinstance(backbone, nn.Module):
        raise ConfigError(f"{FIELD}: {name!r} must return a torch.nn.Module, it returned {type(backbone).__name__}")
    return backbone


def _timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{FIELD}: timm is not installed; pip install 'astra-env[export]'") from error
    try:
        return timm.create_model(name, pretrained=False, num_classes=0)  # type: ignore[no-any-return]
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{FIELD}: timm has no {name!r} ({reason}); see timm.list_models()") from error


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Let foreign code draw from torch's global generator as ``generator`` says, and leave the global one as it was."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's too, which nothing restores
        yield


def _index(branch: str) -> int:
    if branch not in BRANCHES:
        raise InputError(f"branch: expected 'clean' or 'adv', got {branch!r}; the encoder is the same for both")
    return BRANCHES.index(branch)
