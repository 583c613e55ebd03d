"""Self-supervised adversarial training, one minibatch at a time, under attacks that somebody else chooses."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from astra_env.attacks import AttackResult, get_norm
from astra_env.augment.simclr import build_augment
from astra_env.compute import Speed, memory_order, tf32
from astra_env.config.schema import ExperimentConfig
from astra_env.data import ImageDataset
from astra_env.data.training_images import load_training_images
from astra_env.distributed import ALONE, SharedGradients, World, average_statistics, with_shared_statistics
from astra_env.errors import ConfigError
from astra_env.learner.adversary import Adversary
from astra_env.learner.held_out import EncoderHeldOut
from astra_env.learner.minibatches import Minibatches
from astra_env.learner.outcome import Reference
from astra_env.learner.protocol import StepReport
from astra_env.learner.spending import ComputeMeter, training_length
from astra_env.learner.tracking import Outcome, TrackedLearner, hold_out
from astra_env.models import Target, load_official
from astra_env.models.build import build_target
from astra_env.objectives import Batch, Encoder, Setting, objective_factory
from astra_env.objectives.spread import differentiate, require_spreadable
from astra_env.optim import build_optimizer, epochwise_warmup_cosine, half_cosine, warmup_cosine
from astra_env.randomness import generator
from astra_env.rewards import make_reward
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.state import load_or_undo, load_parts, require_scale, require_state
from astra_env.strategy import AttackStrategy, StrategySpace


class ContrastiveLearner(TrackedLearner):
    """Trains a target network by contrastive learning on clean and attacked views (ASTrA, arXiv 2501.02296).

    The same seed and configuration give the same training; every random number comes from the learner's own
    generators, so PyTorch's global one is neither used nor disturbed.

    Args:
        config: the run's configuration.
        dataset: the images; loaded by ``config.data`` when not given.
        world: the ranks that train together. Observations, strategies and rewards are those of the whole batch on every
            rank; views, adversarial views and features are a rank's own rows.

    Raises:
        ConfigError, DataError: naming the field that cannot be used.
    """

    split: ClassVar[str] = "pretrain"
    classifies: ClassVar[bool] = False
    spreads: ClassVar[bool] = True
    make_adversary: ClassVar[type[Adversary]] = Adversary

    def __init__(self, config: ExperimentConfig, dataset: ImageDataset | None = None, world: World = ALONE) -> None:
        self.config, self.world, options = config, world, config.learner
        self.norm = options.norm
        get_norm(self.norm, "learner.")
        self.device = world.resolve(config.device)
        self.space = StrategySpace.of(config)
        make_objective = objective_factory(config)
        self.reward: Any = make_reward(options.reward, options.reward_args, norm=options.norm)
        images = dataset if dataset is not None else load_training_images(config.data, self.device)
        measurement: Reference | None = getattr(self.reward, "measurement", None)
        self.dataset, held_out = (images, None) if measurement is None else hold_out(images, measurement.images)
        speed, side = Speed.of(options, self.device), self.view_size(config, self.dataset)
        self.target = build_target(config.target, config.seed, self.device, speed.channels_last, side)
        self.memory_order = memory_order(self.target, self.device, channels_last=speed.channels_last)
        self.meter = ComputeMeter(world)
        self.meter.watch(self.target)
        if options.sync_bn:
            self.target = with_shared_statistics(self.target, self.device, world, "learner.sync_bn")
        self.base_augment = build_augment(config, self.dataset.images.shape[-1])
        self.minibatches = Minibatches(
            config, self.dataset, lambda images: self.augment(images), self.device, self.memory_order, world
        )
        self.total_steps = training_length(config, self.space, self.steps_per_epoch)
        self.warmup_steps = min(round(options.warmup_epochs * self.steps_per_epoch), self.total_steps)
        self.objective = make_objective(self._setting())
        require_spreadable(self.objective, options, world, len(self.dataset))
        self.speed = Speed.of(options, self.device, foldable=self._foldable())
        self.autocast = speed.autocast
        self.encode = Encoder(self.target, self.autocast)
        parameters = [*self.target.parameters(), *self.objective.parameters()]
        self.optimizer = build_optimizer(options, parameters)
        self.gradients = SharedGradients(parameters, world)
        self.learning_rate_scale = 1.0
        self.step_count = 0
        if held_out is not None:
            self.outcome = Outcome(self.reward, self._measured(held_out), config.env.chunk_steps)
        self.adversary = self.make_adversary(
            self.target,
            self.objective,
            self.reward,
            rewarding=self.outcome is None and getattr(self.reward, "needs_features", True),
            options=options,
            speed=self.speed,
            meter=self.meter,
            generator=generator(config.seed, "attack", self.device),
            world=world,
        )

    @classmethod
    def views_per_image(cls, config: ExperimentConfig) -> int:
        """Two, rows 2k and 2k+1 of a minibatch."""
        return 2

    @classmethod
    def view_size(cls, config: ExperimentConfig, dataset: ImageDataset) -> int:
        """Side of the views in pixels."""
        return config.views.size or dataset.images.shape[-1]

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches in one pass over the images."""
        return self.minibatches.sampler.steps_per_epoch

    @property
    def loss_scales(self) -> Mapping[str, float]:
        """NT-Xent of features that carry no information: log of the number of other views."""
        views = self.views_per_step
        return {
            "clean_loss": math.log(views - 1),
            "adv_loss": math.log(views - 1),
            "mixed_loss": math.log(2 * views - 1),
        }

    @property
    def attack_steps(self) -> Tensor:  # type: ignore[override]
        """Gradient steps spent on attacks so far, over all views; a scalar that stays on the device."""
        return self.adversary.steps

    @property
    def branch(self) -> str:
        """The branch that the objective trains for use."""
        return self.objective.branch

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        options = self.config.learner
        final = options.final_learning_rate / options.learning_rate
        if options.budget is not None:
            warm = min(1.0, self.step_count / self.warmup_steps) if self.warmup_steps else 1.0
            factor = warm * half_cosine(self.progress, final)
        elif options.schedule == "epoch":
            epochs, length = self.total_steps / self.steps_per_epoch, self.steps_per_epoch
            factor = epochwise_warmup_cosine(self.step_count // length, epochs, options.warmup_epochs, final)
        else:
            factor = warmup_cosine(self.step_count, self.total_steps, self.warmup_steps, final)
        return options.learning_rate * factor * self.learning_rate_scale

    @property
    def final_network(self) -> Target:
        """The network to evaluate: the target network, or what the objective makes of it."""
        return self.objective.encoder

    @property
    def left_to_prepare(self) -> int:
        """What the objective has left."""
        return self.objective.left_to_prepare

    def prepare(self) -> None:
        """Do one of them."""
        self.objective.prepare()

    def views(self) -> Tensor:
        """Return the next minibatch: this rank's part of its float views (2B, 3, H, W) in [0, 1]."""
        return self.batch().views

    def batch(self) -> Batch:
        """Return the next minibatch; the same one until :meth:`step`."""
        return self.minibatches.next(self.step_count)

    def augment(self, images: Tensor) -> Tensor:
        """Make the two views of this rank's images (B / W, 3, H, W) uint8 as the objective wants them in this step."""
        augment, total = self.objective.augmentation(self.base_augment, self.step_count), self.world.size * len(images)
        return augment(images, self.minibatches.generator, first=self.world.share(total).start, total=total)

    def observation(self) -> Tensor:
        """Return the views of the whole batch as uint8, which loses nothing: views lie on the 8-bit grid."""
        return self.world.gather(self.own_observation())

    def own_observation(self) -> Tensor:
        """Return this rank's part of :meth:`observation`."""
        return (self.views() * 255).round_().to(torch.uint8, memory_format=torch.contiguous_format)

    def step(self, strategy: AttackStrategy) -> StepReport:
        """Train on the next minibatch under ``strategy``: one budget per view, or one for all.

        Waits for the device once, to learn how many steps each attack has.
        """
        self._prepare_all()
        with tf32(self.speed.tf32):
            report = self._step(self.batch(), strategy)
        self.minibatches.used()
        return report

    def try_attack(self, strategy: AttackStrategy) -> Tensor:
        """Return the reward of attacking the next minibatch with ``strategy``; only the attack's generator moves on.

        Raises ConfigError for a reward of the outcome, which only training shows.
        """
        self.require_damage()
        self._prepare_all()
        with tf32(self.speed.tf32):
            batch = self.batch()
            strategy = self.adversary.budgets(batch, strategy)
            return self.adversary.judge(batch, strategy, self.adversary.trial(batch, strategy))[0]

    def _step(self, batch: Batch, strategy: AttackStrategy) -> StepReport:
        if self.outcome is not None:
            self.outcome.before_step()
        strategy = self.adversary.budgets(batch, strategy)
        attack = self.adversary.attack(batch, strategy)
        reward, reward_terms = self.adversary.judge(batch, strategy, attack)
        self.optimizer.zero_grad(set_to_none=True)
        losses = differentiate(self.objective, self.encode, batch, attack.adversarial, self.gradients)
        learning_rate, gradient_norm = self.learning_rate, self._gradient_norm()
        self._update(learning_rate)
        step, self.step_count = self.step_count, self.step_count + 1
        reward = self.settle(reward)
        return StepReport(
            step=step,
            learning_rate=learning_rate,
            strategy=strategy if self.objective.attacked else None,
            reward=reward,
            terms={
                "loss": losses.total.detach(),
                **_detached(losses.terms),
                "grad_norm": gradient_norm,
                **_attack_terms(attack, self.world),
                **reward_terms,
            },
            views=batch.views,
            adversarial=attack.adversarial,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the training depends on: tensors and plain values."""
        return {
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_count,
            "learning_rate_scale": self.learning_rate_scale,
            **self.minibatches.state_dict(),
            "attack_generator": self.adversary.generator.get_state().cpu(),
            "attack_steps": self.attack_steps.cpu(),
            "objective": self.objective.state_dict(),
            **{name: owner.state_dict() for name, owner in self.tracked().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises CheckpointError, and changes nothing, when it is damaged or belongs to something else.
        """
        own = self.state_dict()
        require_state(state, {**own, **self._owners()}, others=True)
        require_scale("learning_rate_scale", state["learning_rate_scale"])
        load_or_undo(state, own, self._take_state, "this learner")
        self.minibatches.used()

    def _owners(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "sampler": self.minibatches.sampler,
            "view_generator": self.minibatches.generator,
            "attack_generator": self.adversary.generator,
            "objective": self.objective,
            **self.tracked(),
        }

    def _take_state(self, state: dict[str, Any]) -> None:
        load_official(self.target, state["target"])
        load_parts(self._owners(), state)
        self.step_count, self.learning_rate_scale = state["step"], float(state["learning_rate_scale"])
        self.adversary.steps = state["attack_steps"].to(self.device)

    def warm_start(self, path: str | Path) -> None:
        """Take over the target network's weights of a checkpoint and nothing else of it."""
        load_official(self.target, load_checkpoint(path))

    def _prepare_all(self) -> None:
        while self.left_to_prepare:
            self.prepare()

    def _setting(self) -> Setting:
        spent = None if self.config.learner.budget is None else lambda: self.progress
        lengths = self.total_steps, self.steps_per_epoch
        return Setting(self.config, self.target, self.dataset, self.device, *lengths, self.world, spent)

    def _foldable(self) -> bool:
        """Whether a folded copy can stand in for the attacked network; raises ConfigError when it must and cannot."""
        options, target = self.config.learner, self.config.target
        if options.fold_batchnorm and not self.objective.foldable:
            raise ConfigError(
                f"learner.fold_batchnorm: learner.objective {options.objective!r} attacks more than the projected "
                "features, which a folded copy does not have; switch it off"
            )
        plain = target.norm != "group" and target.backbone == "resnet" and options.attack_mode == "eval"
        return self.objective.foldable and plain

    def _measured(self, held_out: ImageDataset) -> EncoderHeldOut:
        options = self.branch, self.config.learner.temperature, self.norm, self.device
        return EncoderHeldOut(self.target, lambda: self.final_network, held_out, self.base_augment, *options)

    def _gradient_norm(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _update(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.objective.before_update()
        self.optimizer.step()
        if not self.config.learner.sync_bn:
            average_statistics(self.target, self.world)
        self.objective.after_update()


def _attack_terms(attack: AttackResult, world: World) -> dict[str, Tensor]:
    share = world.mean_of_known(attack.zero_gradient_share)
    return {} if share is None else {"zero_gradient_share": share}


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}
