"""What a method is, and methods by name: an attack and a sum of loss terms; robust perception comes on top of it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import AttackResult, Objective, supervised_attack
from astra_env.distributed import ALONE, World
from astra_env.errors import ConfigError, InputError
from astra_env.registry import Registry
from astra_env.strategy import Attack, AttackStrategy
from rpat.losses import robust_perception_loss
from rpat.schedules import default_milestones


@dataclass(frozen=True)
class RobustPerception:
    """Weight lambda and mixing rate r of the robust-perception term."""

    weight: float = 1.0
    rate: float = 0.5


@dataclass(frozen=True)
class Progress:
    """Where the run is: ``epoch`` counts from 0; ``learning_rate`` relative to its start."""

    epoch: int = 0
    epochs: int = 1
    milestones: tuple[int, ...] = ()
    learning_rate: float = 1.0


@dataclass(frozen=True)
class Defaults:
    """The settings a method is published with, used where the configuration says null."""

    epochs: int = 110
    milestones: Callable[[int], list[int]] = default_milestones
    factor: float = 0.1
    padding_mode: str = "zero"
    autoaugment: str = "never"
    normalize: str = "none"
    average: bool = False


class Step:
    """One minibatch on its way through a training step.

    Logits are computed when a loss first asks for them, in training mode and once, so that a method pays only for the
    forward passes in its formula. Each input is a forward pass of its own: BatchNorm must see clean, mixed and
    adversarial images apart.

    Attributes:
        images: (N, 3, H, W) in [0, 1]; a method of V views gets all first views, then all second ones.
        labels: (N,) int64, or (N, C) probabilities after CutMix.
        budget: the attack's norm, and its strength where no strategy is given.
        strategy: the attack's strength, one entry per image.
        perception: robust perception's weight and rate; None while it is off.
        average: the averaged network in eval mode; None before it starts.
        generator: source of the attack's random start.
        world: the ranks over which the batch is spread; images and labels are this rank's own. Random numbers are
            drawn for the whole batch by every rank (:meth:`own_noise`).
        views: augmented views of every image.
        adversarial: x', set by the trainer from the method's :meth:`Method.attack` before the losses are asked for.
        keep_outputs: whether the attack keeps the eval-mode logits of x', which costs one more forward pass.
        attacked: eval-mode logits for the attack, when not by the model itself (a folded copy of it, say); None for a
            method that attacks in training mode.
        attack: what the attack left behind; None before it, or when a method attacks in its own way.
    """

    adversarial: Tensor
    attack: AttackResult | None = None

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        budget: Attack,
        *,
        strategy: AttackStrategy | None = None,
        keep_outputs: bool = False,
        generator: torch.Generator | None = None,
        perception: RobustPerception | None = None,
        average: nn.Module | None = None,
        progress: Progress | None = None,
        autocast: torch.dtype | None = None,
        attacked: Callable[[Tensor], Tensor] | None = None,
        world: World = ALONE,
        views: int = 1,
    ) -> None:
        self.world = world
        self.views = views
        self.model = model
        self.images = images
        self.labels = labels
        self.budget = budget
        self.strategy = strategy if strategy is not None else budget.strategy(len(images), images.device)
        self.keep_outputs = keep_outputs
        self.generator = generator
        self.perception = perception
        self.average = average
        self.progress = progress if progress is not None else Progress()
        self.autocast = autocast
        self.attacked = attacked

    @cached_property
    def mixed(self) -> Tensor:
        """The input between clean and adversarial: ``r * x + (1 - r) * x'``."""
        rate = self.perception.rate if self.perception is not None else 0.5
        return rate * self.images + (1 - rate) * self.adversarial

    @cached_property
    def adv_logits(self) -> Tensor:
        """z(x')."""
        return self.forward(self.model, self.adversarial)

    @cached_property
    def clean_logits(self) -> Tensor:
        """z(x)."""
        return self.forward(self.model, self.images)

    @cached_property
    def mix_logits(self) -> Tensor:
        """z(x_m)."""
        return self.forward(self.model, self.mixed)

    def own_noise(self, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return this rank's part of what ``draw`` makes for a batch of the given shape, the whole one."""
        return self.world.own(draw(self.world.whole(self.images)), self.views)

    @torch.no_grad()
    def average_logits(self, images: Tensor) -> Tensor:
        """z_ema of any images, without gradient; raises InputError before the averaged network exists."""
        if self.average is None:
            raise InputError("ema: the averaged network has not started yet; a method must look at step.average first")
        return self.forward(self.average, images)

    @torch.no_grad()
    def move_statistics(self, images: Tensor) -> None:
        """Forward images in training mode for BatchNorm's running statistics alone, as a released code happens to."""
        self.forward(self.model, images)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return a network's logits in float32, computed in the run's precision."""
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            logits = model(images)
        return logits.float() if self.autocast is not None else logits


class Method:
    """PGD adversarial training and the base of every other method (Madry et al. 2018).

    A new method overrides :meth:`loss`, and :meth:`attack` or :meth:`budget` when it attacks in its own way;
    everything here then applies to it. Constructor arguments come from ``method_args``.

    Attributes:
        views: augmented views of every image.
        attack_mode: of the network under attack: "eval", or "train", where every step of the attack moves BatchNorm's
            running statistics and no folded copy can stand for the network.
        hard_labels: whether every image must show one class, which CutMix undoes.
        needs_average: whether the loss uses the averaged network.
        defaults: the published settings.
    """

    views: ClassVar[int] = 1
    hard_labels: ClassVar[bool] = False
    needs_average: ClassVar[bool] = False
    defaults: ClassVar[Defaults] = Defaults()
    attack_mode: str = "eval"

    def budget(self, budget: Attack, progress: Progress) -> Attack:
        """Return the attack of this epoch; the configured one unless a method strengthens it."""
        return budget

    def attack(self, step: Step) -> Tensor:
        """Return x': PGD on the cross-entropy from a uniform start; the model is left in training mode."""
        return self.pgd(step)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Return the method's own loss terms by name, weights included; their sum is minimised."""
        return {"cross_entropy": F.cross_entropy(step.adv_logits, step.labels)}

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return every term of the step: :meth:`loss`, and robust perception when it is on."""
        terms = self.loss(step)
        if step.perception is not None:
            distance = robust_perception_loss(step.mix_logits, step.clean_logits, step.adv_logits, step.perception.rate)
            terms = {**terms, "robust_perception": step.perception.weight * distance}
        return terms

    def after_update(self, step: Step) -> None:
        """Do what the released code does between the optimiser's step and that of the average; nothing by default."""

    def pgd(
        self, step: Step, *, start: Tensor | None = None, objective: Objective | None = None, clip_start: bool = True
    ) -> Tensor:
        """Run the step's attack from ``start`` (default uniform in the ball) on ``objective`` (cross-entropy).

        ``clip_start`` clips the start to the image box before the network first sees it.
        """
        step.attack = supervised_attack(
            step.model,
            step.images,
            step.labels,
            step.strategy,
            norm=step.budget.norm,
            init=start,
            generator=step.generator,
            objective=objective,
            forward=step.attacked,
            autocast=step.autocast if step.attacked is None else None,
            final_outputs=step.keep_outputs,
            world=step.world,
            groups=step.views,
            clip_start=clip_start,
        )
        return step.attack.adversarial

    def training_pgd(self, step: Step, start: Tensor) -> Tensor:
        """Run the step's attack on the network in training mode; raises InputError when a copy stands for it."""
        if step.attacked is not None:
            raise InputError("attacked: an attack in training mode needs the network itself; leave it None")
        # Its outputs are in training mode, and what looks at an attack's outputs wants them in eval mode.
        step.attack = replace(
            supervised_attack(
                step.model,
                step.images,
                step.labels,
                step.strategy,
                norm=step.budget.norm,
                init=start,
                autocast=step.autocast,
                attack_mode="train",
                final_outputs=True,
                world=step.world,
            ),
            outputs=None,
        )
        return step.attack.adversarial


METHODS: Registry[type[Method]] = Registry("method")
"""Classes derived from :class:`Method`; ``module:MyMethod`` is imported."""


def method_class(name: str) -> type[Method]:
    """Return the class called ``name``; raises ConfigError for an unknown name or something that is no method."""
    cls = METHODS.get(name)
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise ConfigError(f"method: expected a subclass of rpat.methods.Method, got {name!r}; derive it from Method")
    return cls


def make_method(name: str, arguments: Mapping[str, Any] | None = None) -> Method:
    """Return the method called ``name``; raises ConfigError naming an argument that it does not have."""
    cls = method_class(name)
    arguments = dict(arguments or {})
    known = list(inspect.signature(cls).parameters)
    for key in arguments:
        if key not in known:
            advice = f"it takes {', '.join(known)}" if known else "it takes none, remove it"
            raise ConfigError(f"method_args.{key}: {name} has no such argument; {advice}")
    return cls(**arguments)


def near_start(step: Step, deviation: float = 0.001) -> Tensor:
    """Return the start of TRADES and MART: normal noise of a thousandth of the pixel range, like the images."""
    source = step.generator
    device = source.device if source is not None else step.images.device
    noise = step.own_noise(lambda batch: torch.randn(batch.shape, generator=source, device=device))
    return deviation * noise.to(step.images)


def require_at_least(field: str, value: float, least: float) -> float:
    """Return a method's argument; raises ConfigError naming it when it is smaller than ``least`` or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise ConfigError(f"method_args.{field}: expected a number >= {least:g}, got {value!r}; raise it")
    return value
