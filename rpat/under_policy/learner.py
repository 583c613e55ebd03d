"""Supervised adversarial training under attacks that a policy chooses, image by image (LAS-AT, Jia et al. 2022)."""

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.compute import resolve_device, tf32
from astra_env.config.schema import ExperimentConfig
from astra_env.data import ImageDataset
from astra_env.data.training_images import load_training_images
from astra_env.distributed import buffers_kept
from astra_env.evaluation.measures.batches import require_labels
from astra_env.learner.outcome import Reference
from astra_env.learner.protocol import StepReport
from astra_env.learner.spending import ComputeMeter, training_length
from astra_env.learner.tracking import Outcome, TrackedLearner, hold_out
from astra_env.losses import alignment, uniformity
from astra_env.randomness import generator
from astra_env.rewards import make_reward
from astra_env.storage.state import load_parts, require_state
from astra_env.strategy import AttackStrategy, StrategySpace
from rpat.learner import SupervisedLearner
from rpat.methods import Step, method_class
from rpat.under_policy.config import supervised_config
from rpat.under_policy.held_out import ClassifierHeldOut
from rpat.under_policy.rewards import REWARDS, RewardInputs, logits_of

CHEAPEST_TRAINING = 3.0
"""F per view of training on attacked images alone, as PGD-AT does."""


class StrategyLearner(TrackedLearner):
    """Trains a classifier by one of rpat's methods; each image is attacked as a policy says.

    ``learner.kind_args`` holds the settings of :class:`rpat.RPATConfig` that an experiment has no field for:
    ``method``, ``method_args``, ``robust_perception``, ``network``, ``optimizer.milestones``, ``augment``,
    ``ema`` ... The same seed and attacks give the same network as :class:`rpat.learner.SupervisedLearner`, bit for bit.
    A method of two views (``consistency``) attacks each view by itself; its minibatch has all first views before all
    second ones.

    Beside LAS-AT as released (preset ``supervised_cifar10``): each attack starts uniform in the image's own ball, there
    within 8/255 whatever epsilon is; the target trains without label smoothing; an epoch's last batch is dropped.

    Args:
        config: the run's configuration.
        dataset: labelled training images; loaded by ``config.data`` when not given.

    Raises:
        ConfigError, DataError: naming the field that cannot be used.
    """

    shown: ClassVar[tuple[str, ...]] = ("reward_robust", "reward_clean")

    def __init__(self, config: ExperimentConfig, dataset: ImageDataset | None = None) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.space = StrategySpace.of(config)
        images = dataset if dataset is not None else load_training_images(config.data, self.device, self.split)
        require_labels(images)
        self.reward = make_reward(config.learner.reward, config.learner.reward_args, REWARDS, config.learner.norm)
        measurement: Reference | None = getattr(self.reward, "measurement", None)
        images, held_out = (images, None) if measurement is None else hold_out(images, measurement.images)
        per_epoch = max(1, len(images) // config.learner.batch_size)
        length = training_length(config, self.space, per_epoch, cheapest=CHEAPEST_TRAINING)
        settings = supervised_config(config, length, per_epoch)
        self.norm = settings.norm
        self.meter = ComputeMeter()
        self.supervised = SupervisedLearner(settings, images, self.device, rate_field="learner.learning_rate")
        share = None if config.learner.budget is None else lambda: self.progress
        self.supervised.follow_compute(self.meter, share)
        self.target = self.supervised.model
        self.total_steps = length
        if held_out is not None:
            measured = ClassifierHeldOut(self.target, lambda: self.final_network, held_out, self.norm, self.device)
            self.outcome = Outcome(self.reward, measured, config.env.chunk_steps)
        self.attack_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self._minibatch: tuple[Tensor, Tensor] | None = None
        self._before_minibatch: dict[str, Any] = {}

    @classmethod
    def views_per_image(cls, config: ExperimentConfig) -> int:
        """As many as the method compares: 2 for consistency, else 1."""
        return method_class(str(config.learner.kind_args.get("method", "pgd_at"))).views

    @property
    def step_count(self) -> int:
        """Steps of the budget used up."""
        return self.supervised.step_count

    @step_count.setter
    def step_count(self, count: int) -> None:
        # What was drawn depends on the epoch (AutoAugment), so it is drawn anew.
        self._undraw()
        self.supervised.step_count = count

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.supervised.learning_rate

    @property
    def learning_rate_scale(self) -> float:
        """Factor on the learning rate, lowered when a run that diverged was rolled back."""
        return self.supervised.learning_rate_scale

    @learning_rate_scale.setter
    def learning_rate_scale(self, scale: float) -> None:
        self.supervised.learning_rate_scale = scale

    @property
    def loss_scales(self) -> Mapping[str, float]:
        """The cross-entropy of equal probabilities: log of the number of classes."""
        return dict.fromkeys(("clean_loss", "adv_loss", "mixed_loss"), math.log(len(self.supervised.train.classes)))

    @property
    def final_network(self) -> nn.Module:
        """The average of the weights, in methods that keep one, else the network."""
        average = self.supervised.average
        return self.target if average is None else average.module

    def images(self) -> Tensor:
        """Return the next minibatch: float (N, 3, H, W) in [0, 1], augmented; the same until :meth:`step`."""
        return self._next_minibatch()[0]

    def observation(self) -> Tensor:
        """Return :meth:`images` as uint8, which loses nothing: they lie on the 8-bit grid."""
        return (self.images() * 255).round_().to(torch.uint8, memory_format=torch.contiguous_format)

    def step(self, strategy: AttackStrategy) -> StepReport:
        """Train on the next minibatch under ``strategy``: one budget per image, or one for all.

        Raises:
            Diverged: when the loss or the gradient is not finite; the weights are those from before the step.
        """
        with tf32(self.supervised.speed.tf32):
            return self._train_on(*self._next_minibatch(), strategy)

    def try_attack(self, strategy: AttackStrategy) -> Tensor:
        """Return the reward of attacking the next minibatch with ``strategy``; only the attack's generator moves on."""
        self.require_damage()
        with buffers_kept(self.target), tf32(self.supervised.speed.tf32):
            reward = self._damage(*self._next_minibatch(), strategy)[0]
        self.supervised.optimizer.zero_grad(set_to_none=True)
        return reward

    def _damage(
        self, images: Tensor, labels: Tensor, strategy: AttackStrategy
    ) -> tuple[Tensor, Step, dict[str, Tensor]]:
        """Attack a minibatch and leave the gradient with the network; returns reward, step and what to report."""
        strategy = strategy.for_each(len(images), self.device)
        step = self.supervised.begin(images, labels, strategy, keep_outputs=True)
        step.adversarial = self.supervised.method.attack(step)
        self.attack_steps = self.attack_steps + strategy.steps.sum()
        clean, adv = self._logits(step)
        terms = self.supervised.differentiate(step)
        inputs = self._reward_inputs(step, clean, adv)
        reward = self.reward(inputs) if self.outcome is None else clean.new_zeros(())
        return reward, step, {**terms, **_shown(step, clean, adv), **inputs.terms}

    def _train_on(self, images: Tensor, labels: Tensor, strategy: AttackStrategy) -> StepReport:
        if self.outcome is not None:
            self.outcome.before_step()
        reward, step, terms = self._damage(images, labels, strategy)
        report = StepReport(
            step=self.step_count,
            learning_rate=self.learning_rate,
            strategy=strategy.for_each(len(images), self.device),
            reward=reward,
            terms=terms,
            views=images,
            adversarial=step.adversarial,
        )
        self.supervised.update(step)
        self._minibatch = None
        report.reward = self.settle(reward)
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the training depends on: tensors and plain values."""
        state = self.supervised.state_dict()
        if self._minibatch is not None:
            state["sampler"] = self._before_minibatch["sampler"]
            state["generators"] = {**state["generators"], "augment": self._before_minibatch["augment"]}
        state["target"] = state.pop("model")
        state["attack_steps"] = self.attack_steps.cpu()
        return state | {name: owner.state_dict() for name, owner in self.tracked().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises CheckpointError, and changes nothing, when it is damaged or belongs to something else.
        """
        own = {"target": self.target, "attack_steps": self.attack_steps, **self.tracked()}
        require_state(state, own, others=True)
        self.supervised.load_state_dict({**state, "model": state["target"]})
        load_parts(self.tracked(), state)
        self.attack_steps = state["attack_steps"].to(self.device, copy=True)
        self._minibatch = None

    def _next_minibatch(self) -> tuple[Tensor, Tensor]:
        if self._minibatch is None:
            source = self.supervised.generators["augment"]
            self._before_minibatch = {"sampler": self.supervised.sampler.state_dict(), "augment": source.get_state()}
            self._minibatch = self.supervised.draw()
        return self._minibatch

    def _undraw(self) -> None:
        if self._minibatch is not None:
            self.supervised.sampler.load_state_dict(self._before_minibatch["sampler"])
            self.supervised.generators["augment"].set_state(self._before_minibatch["augment"])
            self._minibatch = None

    def _logits(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the logits of clean and attacked images before the update, in eval mode."""
        clean = logits_of(self.target, step.images, step.autocast)
        kept = None if step.attack is None else step.attack.outputs
        return clean, logits_of(self.target, step.adversarial, step.autocast) if kept is None else kept.float()

    def _reward_inputs(self, step: Step, clean: Tensor, adv: Tensor) -> RewardInputs:
        source = generator(self.config.seed, f"reward {self.step_count}")
        return RewardInputs(
            images=step.images,
            labels=step.labels,
            clean_logits=clean,
            adv_logits=adv,
            strategy=step.strategy,
            look_ahead=self._look_ahead,
            validation=lambda: self._validation(len(step.images), source),
            norm=self.norm,
            generator=source,
            autocast=step.autocast,
        )

    @torch.no_grad()
    def _look_ahead(self) -> nn.Module:
        """Return a copy of the network after the step whose gradient it holds, by gradient descent without momentum."""
        ahead = copy.deepcopy(self.target).eval()
        rate, decay = self.learning_rate, self.supervised.config.optimizer.weight_decay
        for new, old in zip(ahead.parameters(), self.target.parameters(), strict=True):
            if old.grad is not None:
                new.sub_(rate * (old.grad + decay * old))
        return ahead

    def _validation(self, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``count`` training images as they are, drawn without regard to the minibatch, and their labels."""
        data = self.supervised.train
        rows = torch.randperm(len(data), generator=source)[:count]
        labels = data.labels[rows.to(data.labels.device)].to(self.device)
        return data.gather(rows, self.device).float() / 255, labels


def _shown(step: Step, clean: Tensor, adv: Tensor) -> dict[str, Tensor]:
    """Return what an agent sees of a step; the mixed images' loss where the method has computed their logits."""
    terms = {
        "clean_loss": F.cross_entropy(clean, step.labels),
        "adv_loss": F.cross_entropy(adv, step.labels),
        "alignment": alignment(clean, adv),
        "uniformity": uniformity(clean),
    }
    mixed = step.__dict__.get("mix_logits")
    if mixed is not None:
        terms["mixed_loss"] = F.cross_entropy(mixed.detach(), step.labels)
    return terms
