"""Self-supervised adversarial training, one minibatch at a time, under attacks that somebody else chooses."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from astra_env.attacks import AttackResult, contrastive_attack, frozen
from astra_env.attacks.attack_copy import AttackCopy
from astra_env.augment.simclr import build_augment
from astra_env.compute import Speed, memory_order, tf32
from astra_env.config.schema import ExperimentConfig
from astra_env.data import BatchSampler, ImageDataset
from astra_env.data.training_images import load_training_images
from astra_env.distributed import (
    ALONE,
    SharedGradients,
    World,
    average_statistics,
    buffers_kept,
    with_shared_statistics,
)
from astra_env.errors import ConfigError
from astra_env.learner.protocol import Learner, StepReport
from astra_env.models import Target, load_official
from astra_env.models.build import build_target
from astra_env.objectives import Batch, Encoder, Setting, objective_factory
from astra_env.objectives.spread import differentiate, require_spreadable
from astra_env.optim import build_optimizer, epochwise_warmup_cosine, warmup_cosine
from astra_env.randomness import derive_seed, generator
from astra_env.rewards import RewardInputs, VersusFixed, make_reward
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.state import load_or_undo, load_parts, require_scale, require_state
from astra_env.strategy import AttackStrategy, StrategySpace


class ContrastiveLearner(Learner):
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

    def __init__(self, config: ExperimentConfig, dataset: ImageDataset | None = None, world: World = ALONE) -> None:
        self.config = config
        self.world = world
        options = config.learner
        self.device = world.resolve(config.device)
        self.space = StrategySpace(config.strategy.epsilon, config.strategy.steps, config.strategy.step_size)
        make_objective = objective_factory(config)
        self.reward = make_reward(options.reward, options.reward_args)
        self.dataset = dataset if dataset is not None else load_training_images(config.data, self.device)
        self.speed = Speed.of(options, self.device)
        self.target = build_target(config.target, config.seed, self.device, self.speed.channels_last)
        order = memory_order(self.target, self.device, channels_last=self.speed.channels_last)
        self.memory_order: torch.memory_format = order
        if options.sync_bn:
            self.target = with_shared_statistics(self.target, self.device, world, "learner.sync_bn")
        self.base_augment = build_augment(config, self.dataset.images.shape[-1])
        seed = derive_seed(config.seed, "batches")
        self.sampler = BatchSampler(len(self.dataset), options.batch_size, seed, drop_last=options.drop_last)
        self.view_generator = generator(config.seed, "views")
        self.attack_generator = generator(config.seed, "attack", self.device)
        self.autocast = self.speed.autocast
        self.total_steps = options.total_steps or options.epochs * self.steps_per_epoch
        self.warmup_steps = min(round(options.warmup_epochs * self.steps_per_epoch), self.total_steps)
        self.objective = make_objective(
            Setting(config, self.target, self.dataset, self.device, self.total_steps, self.steps_per_epoch, world)
        )
        require_spreadable(self.objective, options, world, len(self.dataset))
        if options.fold_batchnorm and not self.objective.foldable:
            raise ConfigError(
                f"learner.fold_batchnorm: learner.objective {options.objective!r} attacks more than the projected "
                "features, which a folded copy does not have; switch it off"
            )
        foldable = self.objective.foldable and config.target.norm != "group" and config.target.backbone != "vit"
        foldable = foldable and options.attack_mode == "eval"
        self.speed = Speed.of(options, self.device, foldable=foldable)
        self.encode = Encoder(self.target, self.autocast)
        parameters = [*self.target.parameters(), *self.objective.parameters()]
        self.optimizer = build_optimizer(options, parameters)
        self.gradients = SharedGradients(parameters, world)
        self.learning_rate_scale = 1.0
        self.step_count = 0
        self.attack_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self._attacked = AttackCopy(self.target, self.speed, branch="adv")
        self._batch: Batch | None = None
        self._before_views: dict[str, Any] = {}

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
        return self.sampler.steps_per_epoch

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
    def branch(self) -> str:
        """The branch that the objective trains for use."""
        return self.objective.branch

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        options = self.config.learner
        final = options.final_learning_rate / options.learning_rate
        if options.schedule == "epoch":
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
        """Pieces of work that the objective has left before the first step."""
        return self.objective.left_to_prepare

    def prepare(self) -> None:
        """Do one of them."""
        self.objective.prepare()

    def views(self) -> Tensor:
        """Return the next minibatch: float views (2B, 3, H, W) in [0, 1]; the same ones until :meth:`step`.

        Of several ranks, each makes its own 2B / W of them.
        """
        return self.batch().views

    def batch(self) -> Batch:
        """Return the next minibatch; the same one until :meth:`step`."""
        if self._batch is None:
            self._before_views = {"sampler": self.sampler.state_dict(), "views": self.view_generator.get_state()}
            indices = next(self.sampler)
            views = self.augment(self.dataset.gather(self.world.own(indices), self.device))
            self._batch = Batch(views.contiguous(memory_format=self.memory_order), indices, self.step_count)
        return self._batch

    def augment(self, images: Tensor) -> Tensor:
        """Make the two views of this rank's images (B / W, 3, H, W) uint8 as the objective wants them in this step."""
        augment = self.objective.augmentation(self.base_augment, self.step_count)
        total = self.world.size * len(images)
        return augment(images, self.view_generator, first=self.world.share(total).start, total=total)

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
        with tf32(self.speed.tf32):
            return self._step(strategy)

    def try_attack(self, strategy: AttackStrategy) -> Tensor:
        """Return the reward of attacking the next minibatch with ``strategy``; only the attack's generator moves on."""
        self._prepare_all()
        with tf32(self.speed.tf32):
            batch = self.batch()
            strategy = self.objective.budgets(strategy.for_each(2 * len(batch.indices), self.device))
            attack = self._trial(batch, strategy) if self.objective.attacked else None
            return self._reward(batch, strategy, attack)[0]

    def _prepare_all(self) -> None:
        while self.left_to_prepare:
            self.prepare()

    def _step(self, strategy: AttackStrategy) -> StepReport:
        self._prepare_all()
        batch, views = self.batch(), self.views()
        strategy = self.objective.budgets(strategy.for_each(2 * len(batch.indices), self.device))
        attack = self._attack(batch, strategy) if self.objective.attacked else None
        reward, reward_terms = self._reward(batch, strategy, attack)
        adversarial = views if attack is None else attack.adversarial
        self.optimizer.zero_grad(set_to_none=True)
        losses = differentiate(self.objective, self.encode, batch, adversarial, self.gradients)
        learning_rate, gradient_norm = self.learning_rate, self._gradient_norm()
        self._update(learning_rate)
        report = StepReport(
            step=self.step_count,
            learning_rate=learning_rate,
            strategy=None if attack is None else strategy,
            reward=reward,
            terms={
                "loss": losses.total.detach(),
                **_detached(losses.terms),
                "grad_norm": gradient_norm,
                **_attack_terms(attack, self.world),
                **reward_terms,
            },
            views=views,
            adversarial=adversarial,
        )
        self._batch = None
        self.step_count += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the training depends on: tensors and plain values."""
        return {
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_count,
            "learning_rate_scale": self.learning_rate_scale,
            "sampler": self.sampler.state_dict() if self._batch is None else self._before_views["sampler"],
            "view_generator": self.view_generator.get_state() if self._batch is None else self._before_views["views"],
            "attack_generator": self.attack_generator.get_state().cpu(),
            "attack_steps": self.attack_steps.cpu(),
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises CheckpointError, and changes nothing, when it is damaged or belongs to something else.
        """
        own = self.state_dict()
        require_state(state, {**own, **self._owners()}, others=True)
        require_scale("learning_rate_scale", state["learning_rate_scale"])
        load_or_undo(state, own, self._take_state, "this learner")
        self._batch = None

    def _owners(self) -> dict[str, Any]:
        names = ("optimizer", "sampler", "view_generator", "attack_generator", "objective")
        return {name: getattr(self, name) for name in names}

    def _take_state(self, state: dict[str, Any]) -> None:
        load_official(self.target, state["target"])
        load_parts(self._owners(), state)
        self.step_count, self.learning_rate_scale = state["step"], float(state["learning_rate_scale"])
        self.attack_steps = state["attack_steps"].to(self.device)

    def warm_start(self, path: str | Path) -> None:
        """Take over the target network's weights of a checkpoint and nothing else of it."""
        load_official(self.target, load_checkpoint(path))

    def _attack(self, batch: Batch, strategy: AttackStrategy) -> AttackResult:
        self.attack_steps = self.attack_steps + strategy.steps.sum()
        views, folded = batch.views, self.speed.fold_batchnorm
        return contrastive_attack(
            self.target,
            views,
            self.world.own(strategy),
            generator=self.attack_generator,
            autocast=None if folded else self.autocast,
            forward=self._attacked.forward(len(views)) if folded else lambda x: self.objective.outputs(x, "adv"),
            objective=self.objective.attack_goal(batch),
            world=self.world,
            chunks=self.config.learner.accumulate,
            clip_start=self.objective.clip_start,
            attack_mode=self.config.learner.attack_mode,
            whole_batch=self.objective.whole_batch,
        )

    def _trial(self, batch: Batch, strategy: AttackStrategy) -> AttackResult:
        """Attack without a trace in the running statistics, which move in training mode."""
        with buffers_kept(self.target), buffers_kept(self.final_network):
            return self._attack(batch, strategy)

    def _reward(
        self, batch: Batch, strategy: AttackStrategy, attack: AttackResult | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        views = batch.views
        if attack is None or attack.outputs is None:
            return views.new_zeros(()), {}
        objective, reference = self.objective, None
        if isinstance(self.reward, VersusFixed):
            fixed = objective.budgets(self.reward.reference(2 * len(batch.indices), self.device))
            outputs = self._trial(batch, fixed).outputs
            reference = None if outputs is None else objective.features(self.world.gather(outputs))
        with frozen(self.target), torch.no_grad():
            clean = objective.features(self.world.gather(self._clean_outputs(views)))
        adv = objective.features(self.world.gather(attack.outputs))
        temperature, loss = self.config.learner.temperature, objective.reward_loss(batch)
        inputs = RewardInputs(clean, adv, strategy, temperature, reference, loss)
        return self.reward(inputs), inputs.terms()

    def _clean_outputs(self, views: Tensor) -> Tensor:
        chunks = views.tensor_split(self.config.learner.accumulate)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            outputs = [self.objective.outputs(chunk, self.objective.clean_branch) for chunk in chunks]
        return torch.cat(outputs).to(views.dtype)

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


def _attack_terms(attack: AttackResult | None, world: World) -> dict[str, Tensor]:
    share = None if attack is None else world.mean_of_known(attack.zero_gradient_share)
    return {} if share is None else {"zero_gradient_share": share}


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}
