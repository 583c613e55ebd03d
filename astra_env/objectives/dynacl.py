"""DynACL: augmentation weakens over the training while weight moves to the attacked views (Luo et al. 2023)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from astra_env.augment import SimCLRAugment
from astra_env.errors import ConfigError
from astra_env.losses import interleave, nt_xent
from astra_env.models import Target
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, Setting, TrainingObjective


@dataclass
class DynACLOptions:
    """``learner.objective_args`` of dynacl."""

    epochs: int = 1000
    """Epochs E of the schedule; a training of another length is divided into as many."""
    refresh: int = 50
    """Epochs of the schedule between changes."""
    swap: float = 2 / 3
    """How much weight moves from the clean to the attacked views by the end."""
    momentum: float = 0.99
    """Of the momentum encoder."""
    momentum_warmup: bool = True
    """Reach the momentum from below, (1 + n) / (10 + n) after n updates, so that short runs forget their start; the
    published momentum is constant."""


@OBJECTIVES.register("dynacl")
class DynACL(TrainingObjective):
    """((2 - w) NT-Xent(clean) + w NT-Xent(adv)) / 2 with scheduled augmentation, w and a momentum encoder.

    At epoch e = 1..E of the schedule the augmentation has strength s = 1 - (e - 1) / E and the attacked views weight
    w = min(1 + floor(e / 50) (50 / E) (2 / 3), 2), both changing every 50 epochs. Second views go through the momentum
    encoder, in the attack as in the loss; it moves towards the weights that the trained network has before its update,
    and is the network to evaluate. A checkpoint holds it as ``objective.momentum_encoder``. As published, the start of
    the attack is not clipped to the image box. In preset dynacl the learning rate is constant within an epoch
    (``learner.schedule: epoch``), the last, incomplete batch is trained on, and the momentum is constant.
    """

    clip_start: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True
    Options: ClassVar[type] = DynACLOptions

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        for name in ("epochs", "refresh"):
            value = getattr(options, name)
            if value < 1:
                raise ConfigError(f"learner.objective_args.{name}: expected an integer >= 1, got {value}")
        if not 0 <= options.momentum < 1:
            raise ConfigError(f"learner.objective_args.momentum: expected a number in [0, 1), got {options.momentum}")
        if not 0 <= options.swap <= 1:
            raise ConfigError(f"learner.objective_args.swap: expected a number in [0, 1], got {options.swap}")
        self.momentum_encoder: Target = copy.deepcopy(setting.target).requires_grad_(False)
        self._following = Encoder(self.momentum_encoder)
        self.updates = 0

    def epoch(self, step: int) -> int:
        """Return the epoch of the schedule, 1..E, that holds a step (0-based)."""
        epochs, spent = self.options.epochs, self.setting.spent
        past = epochs * step // self.setting.total_steps if spent is None else int(epochs * spent())
        return min(epochs, 1 + past)

    def strength(self, epoch: int) -> float:
        """Return the strength of the augmentation, from 1 towards 0."""
        refresh = self.options.refresh
        return 1 - (epoch - 1) // refresh * refresh / self.options.epochs

    def weight(self, epoch: int) -> float:
        """Return the weight w of the attacked views, from 1 towards 1 + swap."""
        refresh = self.options.refresh
        return min(1 + epoch // refresh * (refresh / self.options.epochs) * self.options.swap, 2.0)

    def augmentation(self, default: SimCLRAugment, step: int) -> SimCLRAugment:
        """Return ``default`` with everything but mirroring scaled by the strength of this step."""
        strength = self.strength(self.epoch(step))
        brightness, contrast, saturation, hue = (strength * value for value in default.jitter)
        return replace(
            default,
            crop_scale=(1 - (1 - default.crop_scale[0]) * strength, default.crop_scale[1]),
            jitter=(brightness, contrast, saturation, hue),
            jitter_probability=strength * default.jitter_probability,
            grayscale_probability=strength * default.grayscale_probability,
        )

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses; first views through the trained network, second ones through the momentum encoder."""
        adv, clean = self._features(encode, adversarial, "adv"), self._features(encode, batch.views, "clean")
        clean_loss, adv_loss = nt_xent(clean, self.temperature), nt_xent(adv, self.temperature)
        epoch = self.epoch(batch.step)
        weight = self.weight(epoch)
        total = ((2 - weight) * clean_loss + weight * adv_loss) / 2
        terms = {
            "clean_loss": clean_loss,
            "adv_loss": adv_loss,
            "adv_weight": total.new_tensor(weight),
            "augmentation_strength": total.new_tensor(self.strength(epoch)),
        }
        return Losses(total, terms)

    def outputs(self, views: Tensor, branch: str) -> Tensor:
        """Views (2B, 3, H, W) -> features (2B, D), of second views the momentum encoder's."""
        self.momentum_encoder.train(self.target.training)
        first, second = self.target(views[0::2], branch=branch), self.momentum_encoder(views[1::2], branch=branch)
        return interleave(first, second)

    @torch.no_grad()
    def before_update(self) -> None:
        """Move the momentum encoder towards the trained network."""
        momentum = self.options.momentum
        if self.options.momentum_warmup:
            momentum = min(momentum, (1 + self.updates) / (10 + self.updates))
        own: list[Tensor] = list(self.momentum_encoder.parameters())
        new: list[Tensor] = list(self.target.parameters())
        torch._foreach_lerp_(own, new, 1 - momentum)
        self.updates += 1

    @property
    def encoder(self) -> Target:
        """The momentum encoder."""
        return self.momentum_encoder

    def state_dict(self) -> dict[str, Any]:
        """Return the momentum encoder and the number of updates."""
        return {"momentum_encoder": self.momentum_encoder.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken."""
        self.momentum_encoder.load_state_dict(state["momentum_encoder"])
        self.updates = state["updates"]

    def _features(self, encode: Encoder, views: Tensor, branch: str) -> Tensor:
        self._following.autocast = encode.autocast
        with torch.no_grad():
            second = self._following(views[1::2], branch)
        return interleave(encode(views[0::2], branch), second)
