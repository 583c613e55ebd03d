"""Supervised adversarial training, one step at a time; everything a checkpoint must hold lives here."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from astra_env.attacks.attack_copy import AttackCopy
from astra_env.compute import Speed, memory_order, tf32
from astra_env.data import BatchSampler, ImageDataset
from astra_env.distributed import ALONE, SharedGradients, World, average_statistics, with_shared_statistics
from astra_env.errors import ConfigError, Diverged
from astra_env.learner.spending import ComputeMeter
from astra_env.modes import at_the_door
from astra_env.randomness import derive_seed, generator
from astra_env.storage.state import Either, load_or_undo, load_parts, require_scale, require_state
from astra_env.strategy import AttackStrategy
from rpat.augmentation import Augmentation
from rpat.config import RPATConfig
from rpat.methods import Progress, Step
from rpat.schedules import cosine, piecewise
from rpat.weights import build_network

Forward = Callable[[Tensor], Tensor]


class SupervisedLearner:
    """The classifier under training and everything that advances it.

    Args:
        config: resolved configuration.
        train: labelled training images, without the validation slice.
        device: where the network lives.
        rate_field: what the user sets the learning rate by, for messages.
        world: the ranks that train together; each works on its own rows of every batch.

    Attributes:
        model: the classifier.
        average: its exponential moving average; None before it starts.
        step_count: finished steps since the beginning of the run.
        learning_rate_scale: factor on the learning rate, lowered when a run that diverged was rolled back.
    """

    @at_the_door
    def __init__(
        self,
        config: RPATConfig,
        train: ImageDataset,
        device: torch.device,
        world: World = ALONE,
        *,
        rate_field: str = "optimizer.learning_rate",
    ) -> None:
        self._rows = len(range(config.batch_size)[world.share(config.batch_size, "batch_size")])
        self.world = world
        self.config = config
        self.rate_field = rate_field
        self.train = train
        self.device = device
        self.method = config.make_method()
        self.epochs = config.epochs or 0
        # Training mode has nothing to fold: its statistics are the batch's own.
        self.speed = Speed.of(config.learner, device, foldable=self.method.attack_mode == "eval")
        network = build_network(config.network, train, config.seed).to(device)
        order = memory_order(network, device, channels_last=self.speed.channels_last)
        self.memory_order: torch.memory_format = order
        self.model: nn.Module = network.to(memory_format=order)  # type: ignore[call-overload]
        if config.learner.sync_bn:
            self.model = with_shared_statistics(self.model, device, world, "learner.sync_bn")
        self._attacked = AttackCopy(self.model, self.speed) if self.speed.fold_batchnorm else None
        self.gradients = SharedGradients(self.model.parameters(), world)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.optimizer.learning_rate,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )
        self.average: AveragedModel | None = None
        self.sampler = BatchSampler(
            len(train), config.batch_size, derive_seed(config.seed, "sampler"), drop_last=config.drop_last
        )
        _require_usable_rest(config, len(train), world.size)
        self.generators = {name: generator(config.seed, name) for name in ("augment", "attack")}
        self.augment = Augmentation(
            config.augment,
            epochs=self.epochs,
            views=self.method.views,
            num_classes=config.network.num_classes or len(train.classes),
            generator=self.generators["augment"],
        )
        self.step_count = 0
        self.learning_rate_scale = 1.0
        self._counted: Callable[[Forward], Forward] = lambda forward: forward
        self._share: Callable[[], float] | None = None

    def follow_compute(self, meter: ComputeMeter, share: Callable[[], float] | None) -> None:
        """Have the network's passes counted, and epochs follow a budget of compute.

        Args:
            meter: counts.
            share: returns the share of the budget used up, of which each epoch gets as much; None for epochs of steps.
        """
        meter.watch(self.model)
        self._counted, self._share = meter.counted, share

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to."""
        if self._share is not None:
            return min(self.epochs - 1, int(self._share() * self.epochs))
        return self.step_count // self.sampler.steps_per_epoch

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was the last one of its epoch."""
        return self.step_count > 0 and self.step_count % self.sampler.steps_per_epoch == 0

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        return self.epochs * self.sampler.steps_per_epoch

    def learning_rate_factor(self, epoch: int) -> float:
        """Return the learning rate of an epoch relative to the first one's."""
        optimizer = self.config.optimizer
        if optimizer.schedule == "cosine":
            return cosine(epoch, self.epochs)
        return piecewise(epoch, optimizer.milestones or (), optimizer.factor or 1.0)

    @property
    def finished(self) -> bool:
        """Whether the training budget is used up."""
        return self.step_count >= self.total_steps

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        rate = self.config.optimizer.learning_rate * self.learning_rate_factor(self.epoch)
        return rate * self.learning_rate_scale

    @at_the_door
    def step(self) -> dict[str, Tensor]:
        """Train on the next batch and return its loss terms as scalars on the device.

        Raises:
            Diverged: when the loss or the gradient is not finite; the weights are those from before the step, the
                statistics of BatchNorm may be spoilt.
        """
        with tf32(self.speed.tf32):
            step = self.begin(*self.draw())
            step.adversarial = self.method.attack(step)
            terms = self.differentiate(step)
            self.update(step)
        return terms

    @at_the_door
    def draw(self) -> tuple[Tensor, Tensor]:
        """Return this rank's part of the next batch, augmented: images in [0, 1] and labels, for :class:`Step`."""
        rows = next(self.sampler)
        home, cuda = self.train.labels.device, self.device.type == "cuda"
        labels = self.train.labels[rows.to(home, non_blocking=cuda)].to(self.device, non_blocking=cuda)
        # All of it on every rank, because CutMix pastes from image to image; next to an attack it costs nothing.
        batch = self.augment(self.train.gather(rows, self.device), labels, self.epoch)
        images, labels = (self.world.own(part, self.method.views) for part in batch)
        return images.contiguous(memory_format=self.memory_order), labels

    def begin(
        self, images: Tensor, labels: Tensor, strategy: AttackStrategy | None = None, *, keep_outputs: bool = False
    ) -> Step:
        """Set what depends on the epoch and return the step that trains on a batch.

        Args:
            images: of :meth:`draw`.
            labels: of :meth:`draw`.
            strategy: one attack per image; default the configured one for all.
            keep_outputs: keep the logits that the attack ends with.
        """
        config, epoch = self.config, self.epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        if self.average is None and config.ema.enabled and epoch >= config.ema.start_epoch:
            self._start_average()
        self.model.train()
        progress = Progress(
            epoch, self.epochs, tuple(config.optimizer.milestones or ()), self.learning_rate_factor(epoch)
        )
        return Step(
            self.model,
            images,
            labels,
            self.method.budget(config.budget, progress),
            strategy=strategy,
            keep_outputs=keep_outputs,
            generator=self.generators["attack"],
            perception=config.perception if epoch >= config.rp_start_epoch else None,
            average=self.average,
            progress=progress,
            autocast=self.speed.autocast,
            attacked=None
            if self._attacked is None
            else self._counted(self._attacked.forward(self._rows * self.method.views)),
            world=self.world,
            views=self.method.views,
        )

    def differentiate(self, step: Step) -> dict[str, Tensor]:
        """Leave the gradient of the whole batch's loss with the parameters; returns its terms, alike on every rank."""
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}

        def compute() -> Tensor:
            terms.update(self.method.terms(step))
            return torch.stack(list(terms.values())).sum()

        self.gradients.backward(compute)
        means = self.world.mean(torch.stack([term.detach() for term in terms.values()]))
        loss = means.sum()
        return {
            "loss": loss,
            **{f"loss_{name}": mean for name, mean in zip(terms, means, strict=True)},
            "grad_norm": self._finite_gradient(loss),
            **_signs(step),
        }

    def update(self, step: Step) -> None:
        """Take the step whose gradient the parameters hold."""
        self.optimizer.step()
        self.method.after_update(step)
        if not self.config.learner.sync_bn:
            average_statistics(self.model, self.world)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step_count += 1

    @at_the_door
    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, beside configuration and data."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "generators": {name: source.get_state() for name, source in self.generators.items()},
            "step": self.step_count,
            "learning_rate_scale": self.learning_rate_scale,
        }

    @at_the_door
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises CheckpointError, and changes nothing, when it is damaged or belongs to something else.
        """
        own, state = self.state_dict(), {"learning_rate_scale": 1.0, **state}
        require_state(state, {**own, **self._owners(), "ema": Either(self.model)}, others=True)
        require_scale("learning_rate_scale", state["learning_rate_scale"])
        load_or_undo(state, own, self._take_state, "this classifier")

    def _owners(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimizer", "sampler", "generators")}

    def _take_state(self, state: Mapping[str, Any]) -> None:
        load_parts(self._owners(), state)
        self.step_count = state["step"]
        self.learning_rate_scale = float(state["learning_rate_scale"])
        self.average = None
        if state["ema"] is not None:
            self._start_average()
            assert self.average is not None
            self.average.module.load_state_dict(state["ema"])

    def _finite_gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient's length; raises Diverged unless it and the loss are finite. Asks the device once."""
        length = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if bool(torch.isfinite(loss) & torch.isfinite(length)):
            return length
        raise Diverged(
            f"training diverged at step {self.step_count}: the loss is {loss.item()}, the gradient's length "
            f"{length.item()}; lower {self.rate_field} (now {self.optimizer.param_groups[0]['lr']:g}), or set "
            "run.on_divergence to rollback"
        )

    def _start_average(self) -> None:
        """Begin the average as a copy, BatchNorm's statistics included, which are averaged too (ReBAT)."""
        decay = get_ema_multi_avg_fn(self.config.ema.decay)
        average = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        # The copy is the first model of the average; at zero the next update would copy again.
        average.n_averaged.fill_(1)
        self.average = average.eval().requires_grad_(False)


def _signs(step: Step) -> dict[str, Tensor]:
    """Return what tells whether the attack and the network do anything, as far as the step has computed it anyway."""
    share = step.world.mean_of_known(None if step.attack is None else step.attack.zero_gradient_share)
    signs = {} if share is None else {"zero_gradient_share": share}
    logits = step.__dict__.get("adv_logits")
    if logits is not None:
        spread = step.world.mean_of_known(logits.detach().std(0).mean())
        signs |= {} if spread is None else {"logit_spread": spread}
    return signs


def _require_usable_rest(config: RPATConfig, images: int, ranks: int) -> None:
    """Raise ConfigError unless a last batch that is kept can be shared by the ranks and has a variance."""
    rest = images % config.batch_size
    if not config.drop_last and rest and (rest == 1 or rest % ranks):
        raise ConfigError(
            f"drop_last: the last batch of an epoch would have {rest} of the {images} images; it needs 2 or more and a "
            f"multiple of the {ranks} processes; set --drop_last true or change --validation.size"
        )
