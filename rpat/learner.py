"""Supervised adversarial training, one step at a time; everything a checkpoint must hold lives here."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from astra_env.data import BatchSampler, ImageDataset
from astra_env.errors import CheckpointError, Diverged
from astra_env.seeding import derive_seed, generator
from rpat.augmentation import Augmentation
from rpat.config import RPATConfig
from rpat.methods import Progress, Step
from rpat.schedules import cosine, piecewise
from rpat.weights import build_network


class SupervisedLearner:
    """The classifier under training and everything that advances it.

    Args:
        config: resolved configuration.
        train: labelled training images, without the validation slice.
        device: where the network lives.

    Attributes:
        model: the classifier.
        average: its exponential moving average; None before it starts.
        steps_done: finished steps since the beginning of the run.
    """

    def __init__(self, config: RPATConfig, train: ImageDataset, device: torch.device) -> None:
        self.config = config
        self.train = train
        self.device = device
        self.method = config.make_method()
        self.epochs = config.epochs or 0
        memory = torch.channels_last if config.run.channels_last else torch.contiguous_format
        self.memory_format: torch.memory_format = memory
        network = build_network(config.network, train, config.seed)
        self.model: nn.Module = network.to(device=device).to(memory_format=memory)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.optimizer.learning_rate,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )
        self.average: AveragedModel | None = None
        self.sampler = BatchSampler(len(train), config.batch_size, derive_seed(config.seed, "sampler"))
        self.generators = {name: generator(config.seed, name) for name in ("augment", "attack")}
        self.augment = Augmentation(
            config.augment,
            epochs=self.epochs,
            views=self.method.views,
            num_classes=config.network.num_classes or len(train.classes),
            generator=self.generators["augment"],
        )
        self.steps_done = 0

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to."""
        return self.steps_done // self.sampler.steps_per_epoch

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

    def step(self) -> dict[str, Tensor]:
        """Train on the next batch and return its loss terms as scalars on the device.

        Raises:
            Diverged: when the loss is not finite; the weights are those from before the step.
        """
        epoch = self.epoch
        self._begin(epoch)
        step = self._next_step(epoch)
        step.adversarial = self.method.attack(step)
        terms = self.method.terms(step)
        loss = torch.stack(list(terms.values())).sum()
        if not bool(torch.isfinite(loss)):
            raise Diverged(
                f"training diverged at step {self.steps_done}: the loss is {loss.item()}; lower "
                f"optimizer.learning_rate (now {self.optimizer.param_groups[0]['lr']:g}) and --resume or start again"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.steps_done += 1
        return {"loss": loss.detach(), **{f"loss_{name}": term.detach() for name, term in terms.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, beside configuration and data."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "generators": {name: source.get_state() for name, source in self.generators.items()},
            "step": self.steps_done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken; raises CheckpointError when it belongs to something else."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.sampler.load_state_dict(state["sampler"])
            for name, source in self.generators.items():
                source.set_state(state["generators"][name].cpu())
            self.steps_done = int(state["step"])
            self.average = None
            if state["ema"] is not None:
                self._start_average()
                assert self.average is not None
                self.average.module.load_state_dict(state["ema"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"last.pt: not a checkpoint of this configuration ({reason}); resume with the run's own config.yaml"
            ) from error

    def _begin(self, epoch: int) -> None:
        """Set what depends on the epoch."""
        rate = self.config.optimizer.learning_rate * self.learning_rate_factor(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.average is None and self.config.ema.enabled and epoch >= self.config.ema.start_epoch:
            self._start_average()
        self.model.train()

    def _start_average(self) -> None:
        """Begin the average as a copy, BatchNorm's statistics included, which are averaged too (ReBAT)."""
        decay = get_ema_multi_avg_fn(self.config.ema.decay)
        average = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        # The copy is the first model of the average; at zero the next update would copy again.
        average.n_averaged.fill_(1)
        self.average = average.eval().requires_grad_(False)

    def _next_step(self, epoch: int) -> Step:
        config = self.config
        rows = next(self.sampler)
        labels = self.train.labels[rows.to(self.train.labels.device)].to(self.device)
        images, labels = self.augment(self.train.gather(rows, self.device), labels, epoch)
        progress = Progress(
            epoch, self.epochs, tuple(config.optimizer.milestones or ()), self.learning_rate_factor(epoch)
        )
        return Step(
            self.model,
            images.contiguous(memory_format=self.memory_format),
            labels,
            self.method.budget(config.budget, progress),
            generator=self.generators["attack"],
            perception=config.perception if epoch >= config.rp_start_epoch else None,
            average=self.average,
            progress=progress,
            autocast=torch.bfloat16 if config.run.precision == "bf16" else None,
        )
