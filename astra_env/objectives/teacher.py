"""A SimCLR training as short as it gets: the teacher that DeACL needs when it is given none."""

import torch

from astra_env.building import build_augment
from astra_env.data import BatchSampler
from astra_env.errors import Diverged
from astra_env.losses import nt_xent
from astra_env.models import Target
from astra_env.objectives.base import Encoder, Setting
from astra_env.optim import LARS, warmup_cosine
from astra_env.seeding import derive_seed, generator

WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""


def train_teacher(network: Target, setting: Setting, steps: int, learning_rate: float) -> None:
    """Train ``network`` in place by NT-Xent of clean views with the run's images, views and batch size; frozen after.

    Raises:
        Diverged: when the loss is not finite at the end.
    """
    config = setting.config
    augment = build_augment(config, setting.dataset.images.shape[-1])
    sampler = BatchSampler(len(setting.dataset), config.learner.batch_size, derive_seed(config.seed, "teacher"))
    views_generator = generator(config.seed, "teacher views")
    network.requires_grad_(True)
    encode, optimizer = Encoder(network), LARS(network.parameters(), learning_rate)
    loss = torch.zeros(())
    for step in range(steps):
        views = augment(setting.dataset.gather(next(sampler), setting.device), views_generator)
        loss = nt_xent(encode(views, "clean"), config.learner.temperature)
        factor = warmup_cosine(step, steps, round(WARMUP * steps), 0.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if not bool(torch.isfinite(loss)):
        raise Diverged(f"the teacher's training diverged: loss {loss.item()}; lower teacher_learning_rate")
    network.requires_grad_(False).eval()
