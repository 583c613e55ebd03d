"""Self-supervised adversarial training, one minibatch at a time, under attacks that somebody else chooses."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_env.attacks import AttackResult, contrastive_attack, frozen
from astra_env.augment import SimCLRAugment
from astra_env.checkpoint import load_checkpoint
from astra_env.config import DataConfig, ExperimentConfig, TargetConfig
from astra_env.data import BatchSampler, ImageDataset, label_fraction, load_dataset
from astra_env.distributed import ALONE, SharedGradients, World, average_statistics, with_shared_statistics
from astra_env.distributed.gradients import CachedFeatures
from astra_env.errors import CheckpointError, ConfigError
from astra_env.models import TargetNetwork, load_official, target_resnet18
from astra_env.models.folded import FoldedTarget
from astra_env.objectives import OBJECTIVES, Encode, Losses
from astra_env.optim import LARS, warmup_cosine
from astra_env.report import StepReport
from astra_env.rewards import RewardInputs, VersusFixed, make_reward
from astra_env.seeding import derive_seed, generator
from astra_env.state_checks import (
    UNFIT,
    one_line,
    require_count,
    require_generator_state,
    require_optimizer_state,
    require_scale,
)
from astra_env.strategy import AttackStrategy, StrategySpace


class ContrastiveLearner:
    """Trains a target network by contrastive learning on clean and attacked views (ASTrA 2025; DESIGN section 4).

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

    def __init__(
        self, config: ExperimentConfig, dataset: ImageDataset | None = None, world: World = ALONE
    ) -> None:
        self.config = config
        self.world = world
        options = config.learner
        self.device = world.resolve(config.device)
        self._own_images = own = world.share(options.batch_size)
        if options.accumulate > own.stop - own.start:
            raise ConfigError(
                f"learner.accumulate: expected at most the {own.stop - own.start} images of a process, "
                f"got {options.accumulate}"
            )
        self.space = StrategySpace(config.strategy.epsilon, config.strategy.steps, config.strategy.step_size)
        self.objective = OBJECTIVES.get(options.objective)(options)
        self.reward = make_reward(options.reward, options.reward_args)
        self.dataset = dataset if dataset is not None else load_training_images(config.data, self.device)
        self.target = build_target(config.target, config.seed, self.device, options.channels_last)
        if options.sync_bn:
            self.target = with_shared_statistics(self.target, self.device, world, "learner.sync_bn")
        self.gradients = SharedGradients(self.target, world)
        self.augment = _make_augment(config, self.dataset.images.shape[-1])
        self.sampler = BatchSampler(len(self.dataset), options.batch_size, derive_seed(config.seed, "batches"))
        self.view_generator = generator(config.seed, "views")
        self.attack_generator = generator(config.seed, "attack", self.device)
        self.optimizer = LARS(
            self.target.parameters(),
            lr=options.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            trust_coefficient=options.trust_coefficient,
        )
        self.autocast = torch.bfloat16 if options.precision == "bf16" else None
        self.total_steps = options.total_steps or options.epochs * self.steps_per_epoch
        self.warmup_steps = min(round(options.warmup_epochs * self.steps_per_epoch), self.total_steps)
        self.learning_rate_scale = 1.0
        self.step_count = 0
        self._views: Tensor | None = None
        self._before_views: dict[str, Any] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches in one pass over the images."""
        return self.sampler.steps_per_epoch

    @property
    def views_per_step(self) -> int:
        """Views in one minibatch: two per image."""
        return 2 * self.config.learner.batch_size

    @property
    def finished(self) -> bool:
        """Whether the training budget is used up."""
        return self.step_count >= self.total_steps

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        options = self.config.learner
        final = options.final_learning_rate / options.learning_rate
        factor = warmup_cosine(self.step_count, self.total_steps, self.warmup_steps, final)
        return options.learning_rate * factor * self.learning_rate_scale

    def views(self) -> Tensor:
        """Return the next minibatch: float views (2B, 3, H, W) in [0, 1]; the same ones until :meth:`step`.

        Of several ranks, each makes its own 2B / W of them.
        """
        if self._views is None:
            self._before_views = {"sampler": self.sampler.state_dict(), "views": self.view_generator.get_state()}
            own = self._own_images
            images = self.dataset.gather(next(self.sampler)[own], self.device)
            views = self.augment(
                images, self.view_generator, first=own.start, total=self.config.learner.batch_size
            )
            if self.config.learner.channels_last:
                views = views.to(memory_format=torch.channels_last)
            self._views = views
        return self._views

    def observation(self) -> Tensor:
        """Return the views of the whole batch as uint8, which loses nothing: views lie on the 8-bit grid."""
        return self.world.gather((self.views() * 255).round_().to(torch.uint8))

    def step(self, strategy: AttackStrategy) -> StepReport:
        """Train on the next minibatch under ``strategy``: one budget per view, or one for all.

        Waits for the device once, to learn how many steps each attack has.
        """
        views = self.views()
        strategy = _for_every_view(strategy, self.views_per_step, self.device)
        attack = self._attack(views, strategy) if self.objective.attacked else None
        reward, reward_terms = self._reward(views, strategy, attack)
        adversarial = views if attack is None else attack.adversarial
        losses = self._differentiate(views, adversarial)
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
                **self._attack_terms(attack),
                **reward_terms,
            },
            views=views,
            adversarial=adversarial,
        )
        self._views = None
        self.step_count += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the training depends on: tensors and plain values."""
        return {
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_count,
            "learning_rate_scale": self.learning_rate_scale,
            "sampler": self.sampler.state_dict() if self._views is None else self._before_views["sampler"],
            "view_generator": self.view_generator.get_state() if self._views is None else self._before_views["views"],
            "attack_generator": self.attack_generator.get_state().cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises CheckpointError, and changes nothing, when it is damaged or belongs to something else.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            self._check_state(state)
            self._take_state(state)
        except UNFIT as error:
            self._take_state(before)
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"checkpoint: does not fit this learner ({one_line(error)})") from error
        self._views = None

    def warm_start(self, path: str | Path) -> None:
        """Take over the target network's weights of a checkpoint and nothing else of it."""
        load_official(self.target, load_checkpoint(path))

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError for what loading alone would not notice."""
        for name in ("target", "optimizer", "sampler", "view_generator", "attack_generator", "step"):
            if name not in state:
                raise CheckpointError(f"checkpoint: does not fit this learner: {name!r} is missing")
        require_optimizer_state("optimizer", state["optimizer"], self.optimizer)
        require_generator_state("view_generator", state["view_generator"], self.view_generator)
        require_generator_state("attack_generator", state["attack_generator"], self.attack_generator)
        require_count("step", state["step"])
        require_scale("learning_rate_scale", state.get("learning_rate_scale"))

    def _take_state(self, state: Mapping[str, Any]) -> None:
        load_official(self.target, state["target"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.sampler.load_state_dict(state["sampler"])
        self.view_generator.set_state(state["view_generator"].cpu())
        self.attack_generator.set_state(state["attack_generator"].cpu())
        self.step_count = state["step"]
        self.learning_rate_scale = float(state["learning_rate_scale"])

    def _attack(self, views: Tensor, strategy: AttackStrategy) -> AttackResult:
        folded = None
        if self.config.learner.fold_batchnorm:
            folded = FoldedTarget(self.target, "adv", self.autocast or torch.float32)
        return contrastive_attack(
            self.target,
            views,
            self.world.own(strategy),
            generator=self.attack_generator,
            temperature=self.config.learner.temperature,
            autocast=self.autocast,
            forward=folded,
            world=self.world,
            chunks=self.config.learner.accumulate,
        )

    def _reward(
        self, views: Tensor, strategy: AttackStrategy, attack: AttackResult | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if attack is None or attack.outputs is None:
            return views.new_zeros(()), {}
        reference, everyone = None, self.world.gather
        if isinstance(self.reward, VersusFixed):
            fixed = self.reward.reference(self.views_per_step, self.device)
            features = self._attack(views, fixed).outputs
            reference = None if features is None else everyone(features)
        with frozen(self.target), torch.no_grad():
            chunks = views.tensor_split(self.config.learner.accumulate)
            clean = everyone(torch.cat([self._features(chunk, "clean") for chunk in chunks]))
        temperature = self.config.learner.temperature
        inputs = RewardInputs(clean, everyone(attack.outputs), strategy, temperature, reference)
        return self.reward(inputs), inputs.terms()

    def _training_features(self, views: Tensor, branch: str) -> Tensor:
        self.target.train()
        return self._features(views, branch)

    def _features(self, views: Tensor, branch: str) -> Tensor:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            features = self.target(views, branch=branch)
        return features.to(views.dtype)

    def _differentiate(self, views: Tensor, adversarial: Tensor) -> Losses:
        """Return the losses of the whole batch and leave their gradients at the parameters, alike on every rank."""
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Losses] = []

        def total(encode: Encode) -> Tensor:
            losses.append(self.objective(self.world.join_with(encode), views, adversarial))
            return losses[0].total

        if self.config.learner.accumulate > 1:
            cache = CachedFeatures(self._training_features, self.target, self.config.learner.accumulate)
            cache.backward(total(cache.encode), self.gradients, joint=True)
        else:
            self.gradients.backward(lambda: total(self._training_features), joint=True)
        return losses[0]

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.target.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _update(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if not self.config.learner.sync_bn:
            average_statistics(self.target, self.world)

    def _attack_terms(self, attack: AttackResult | None) -> dict[str, Tensor]:
        if attack is None or self.world.alone:
            share = None if attack is None else attack.zero_gradient_share
            return {} if share is None else {"zero_gradient_share": share}
        share = attack.zero_gradient_share
        shares = self.world.gather(attack.adversarial.new_tensor([float("nan")]) if share is None else share[None])
        return {"zero_gradient_share": shares.nanmean().nan_to_num()}


def build_target(config: TargetConfig, seed: int, device: torch.device, channels_last: bool = False) -> TargetNetwork:
    """Build the target network of a configuration; its weights depend on the seed alone, not on the device."""
    target = target_resnet18(
        width=config.width,
        blocks=config.blocks,
        feature_dim=config.feature_dim,
        hidden_dim=config.hidden_dim,
        stem=config.stem,
        norm=config.norm,
        generator=generator(seed, "target"),
    ).to(device)
    return target.to(memory_format=torch.channels_last) if channels_last else target  # type: ignore[call-overload]


def load_training_images(config: DataConfig, device: torch.device, split: str = "pretrain") -> ImageDataset:
    """Load one split of the configured data set, cut to ``max_images`` when that is set."""
    dataset = load_dataset(
        config.name,
        split,
        root=config.root,
        download=config.download,
        image_size=config.image_size,
        device=device,
        max_device_bytes=config.device_budget_mib << 20,
        max_host_bytes=config.host_budget_mib << 20,
    )
    if config.max_images is None or config.max_images >= len(dataset) or split == "test":
        return dataset
    if config.max_images < 1:
        raise ConfigError(f"data.max_images: expected an integer >= 1, got {config.max_images}")
    if dataset.classes and config.max_images >= len(dataset.classes):
        return label_fraction(dataset, config.max_images / len(dataset), seed=0)
    return dataset.subset(torch.arange(config.max_images))


def _make_augment(config: ExperimentConfig, native_size: int) -> SimCLRAugment:
    options = config.views
    return SimCLRAugment(
        image_size=options.size or native_size,
        crop_scale=options.crop_scale,
        flip_probability=options.flip_probability,
        jitter=options.jitter,
        jitter_probability=options.jitter_probability,
        grayscale_probability=options.grayscale_probability,
    )


def _for_every_view(strategy: AttackStrategy, count: int, device: torch.device) -> AttackStrategy:
    strategy = strategy.to(device)
    if len(strategy) != 1:
        return strategy
    return AttackStrategy(
        strategy.epsilon.expand(count), strategy.steps.expand(count), strategy.step_size.expand(count)
    )


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}
