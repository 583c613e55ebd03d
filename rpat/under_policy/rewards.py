"""What an attack on a classifier's training is rewarded for: pure, named functions of one training step.

``(N,)`` rewards give every image its own credit; scalar rewards are shared by the whole minibatch, as published.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import Attack, frozen, supervised_attack
from astra_env.attacks.engine import ATTACK_MODES
from astra_env.config.checks import one_of
from astra_env.errors import ConfigError
from astra_env.registry import Registry
from astra_env.strategy import AttackStrategy

Reward = Callable[["RewardInputs"], Tensor]
REWARDS: Registry[Callable[..., Reward]] = Registry("learner.reward")
MEASURES = ("accuracy", "loss")
IMAGES = ("minibatch", "validation")
FIXED_ATTACK = Attack(8 / 255, 2 / 255, 10)
HIGHEST_LOSS = 10.0
"""Where LAS-AT's released code caps the adversarial loss."""


@dataclass(frozen=True)
class RewardInputs:
    """What a reward may look at.

    Attributes:
        images: (N, 3, H, W), the clean images of the minibatch.
        labels: (N,) int64, or (N, C) probabilities.
        clean_logits: (N, C) of ``images``, before the update, in eval mode.
        adv_logits: (N, C) of the attacked images, likewise.
        strategy: the attack of each image.
        look_ahead: returns a copy of the network after one plain gradient step on the minibatch, in eval mode.
        validation: returns training images that are not augmented, as many as the minibatch has, and their labels.
        norm: of the attacks' ball.
        generator: for random starts; the training never uses it.
        autocast: dtype of the run's forward passes, when it is not float32.
        terms: scalars worth watching; a reward may add its own, by names that begin with ``reward_``.
    """

    images: Tensor
    labels: Tensor
    clean_logits: Tensor
    adv_logits: Tensor
    strategy: AttackStrategy
    look_ahead: Callable[[], nn.Module]
    validation: Callable[[], tuple[Tensor, Tensor]]
    norm: str = "linf"
    generator: torch.Generator | None = None
    autocast: torch.dtype | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)

    def loss(self, logits: Tensor) -> Tensor:
        """Return each image's cross-entropy (N,)."""
        return F.cross_entropy(logits, self.labels, reduction="none")


@REWARDS.register("adv_loss_gain")
@dataclass(frozen=True)
class AdversarialLossGain:
    """How much the attack raises an image's own cross-entropy: CE(x') - CE(x), before the update.

    Args of the registered name: ``credit``, "per_view" -> (N,) or "shared" -> scalar; ``cost`` of a gradient step.
    """

    credit: str = "per_view"
    cost: float = 0.0

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the gain minus the price of the attack's steps."""
        gain = inputs.loss(inputs.adv_logits) - inputs.loss(inputs.clean_logits)
        return _credited(gain - self.cost * inputs.strategy.steps.to(gain.dtype), self.credit)


@REWARDS.register("look_ahead")
@dataclass(frozen=True)
class LookAhead:
    """LAS-AT's reward: the adversarial loss now, and how good one step of training makes the network.

    ``r = CE(z(x'), y) + robust_weight * robust + clean_weight * clean`` (Jia et al. 2022, section 3: L1 + alpha L2 +
    beta L3, in the released code with 4 and 2): ``robust`` and ``clean`` are measured on a copy of the network after
    one step of plain gradient descent on this minibatch, under a fixed attack and without one. What is left out:
    the released code takes that step with label smoothing (.7). On a small trained network (128 CIFAR-10 images at
    16x16, step .1) the two weighted terms are 1.50 + .77 as released but for the smoothing and 1.24 + .64 with it (at a
    step of .01: .54 + .32 and .53 + .30); in eval mode they are 3.00 + 1.62, because the attack in training mode spoils
    the copy's running statistics before it is measured. Costs ``steps`` + 2 forward passes and ``steps`` backward
    ones for each restart, and the memory of a second network.

    Args:
        robust_weight, clean_weight: weights of the two terms.
        measure: "accuracy" (as the code was released) or "loss": the negative cross-entropy (as it is in the paper).
        attack: the fixed attack, from a uniform start; by the registered name ``epsilon``, ``steps`` and ``step_size``,
            in the norm of training.
        attack_mode: of the copy under the fixed attack. "train" as released: in training mode, which moves the copy's
            running statistics before it is measured, and an image moves only while the copy has it right; or "eval".
        restarts: of the fixed attack, in training mode; an image keeps the one of the larger loss. 2 as released.
        credit: "shared" -> scalar (as published), or "per_view" -> (N,).
        images: "minibatch" (as published), or "validation": other training images, not augmented; shared credit only.
    """

    robust_weight: float = 4.0
    clean_weight: float = 2.0
    measure: str = "accuracy"
    attack: Attack = FIXED_ATTACK
    credit: str = "shared"
    images: str = "minibatch"
    attack_mode: str = "eval"
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuse values that name nothing, and per-view credit for images that no view shows."""
        for name, allowed in (("attack_mode", ATTACK_MODES), ("measure", MEASURES), ("images", IMAGES)):
            one_of(f"learner.reward_args.{name}", getattr(self, name), allowed)
        if self.restarts < 1 or (self.restarts > 1 and self.attack_mode == "eval"):
            raise ConfigError(
                f"learner.reward_args.restarts: expected 1, or more with attack_mode train, got {self.restarts}"
            )
        if self.images == "validation" and self.credit == "per_view":
            raise ConfigError(
                "learner.reward_args.credit: expected 'shared' with images 'validation', got 'per_view': no view is "
                "among those images"
            )

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the reward: a scalar for shared credit, (N,) for per-view credit."""
        images, labels = inputs.validation() if self.images == "validation" else (inputs.images, inputs.labels)
        robust, clean = self._after_one_step(inputs, images, labels)
        inputs.terms.update(reward_robust=robust.mean(), reward_clean=clean.mean())
        if self.credit == "shared":
            robust, clean = robust.mean(), clean.mean()
        # The cap is the mean's where the mean is the reward (as released), and each image's where its own is.
        loss = _credited(inputs.loss(inputs.adv_logits), self.credit).clamp(0, HIGHEST_LOSS)
        return _credited(loss + self.robust_weight * robust + self.clean_weight * clean, self.credit)

    def _after_one_step(self, inputs: RewardInputs, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return how right the network would be on each image, attacked and not, after the step."""
        ahead = inputs.look_ahead()
        attacked = self._attacked(ahead, inputs, images, labels)
        clean = logits_of(ahead, images, inputs.autocast)
        return self._score(attacked, labels), self._score(clean, labels)

    def _attacked(self, ahead: nn.Module, inputs: RewardInputs, images: Tensor, labels: Tensor) -> Tensor:
        """Return the eval-mode logits of the images under the fixed attack, each image's strongest of all restarts."""
        training, strategy = self.attack_mode == "train", self.attack.strategy(len(images), images.device)
        strongest, highest = images, images.new_full((len(images),), -torch.inf)
        for _ in range(self.restarts):
            tried = supervised_attack(
                ahead,
                images,
                labels,
                strategy,
                norm=self.attack.norm,
                generator=inputs.generator,
                autocast=inputs.autocast,
                attack_mode=self.attack_mode,
                early_stop=training,
                final_outputs=True,
            )
            assert tried.outputs is not None
            if not training:
                return tried.outputs
            loss = F.cross_entropy(tried.outputs, labels, reduction="none")
            stronger = loss >= highest
            strongest = torch.where(stronger.view(-1, 1, 1, 1), tried.adversarial, strongest)
            highest = torch.maximum(highest, loss)
        return logits_of(ahead, strongest, inputs.autocast)

    def _score(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.measure == "loss":
            return -F.cross_entropy(logits, labels, reduction="none")
        hard = labels if labels.dim() == 1 else labels.argmax(1)
        return (logits.argmax(1) == hard).to(logits.dtype)


@REWARDS.register("constant")
@dataclass(frozen=True)
class Constant:
    """The control: a reward that knows nothing of the attack."""

    value: float = 1.0

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return ``value`` as a scalar tensor."""
        return inputs.adv_logits.new_full((), self.value)


def logits_of(model: nn.Module, images: Tensor, autocast: torch.dtype | None = None) -> Tensor:
    """Return float32 logits in eval mode, without gradient; the model is left as it was found."""
    with frozen(model), torch.no_grad(), torch.autocast(images.device.type, autocast, enabled=autocast is not None):
        logits: Any = model(images)
    return logits.float()


def _credited(reward: Tensor, credit: str) -> Tensor:
    return reward if credit == "per_view" else reward.mean()
