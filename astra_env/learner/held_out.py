"""The held-out images of a contrastive training, and how robust the encoder is on them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from astra_env.attacks import Contrastive, contrastive_attack, in_mode, supervised_attack
from astra_env.augment import SimCLRAugment
from astra_env.data import ImageDataset
from astra_env.learner.outcome import SEED, HeldOut, Reference
from astra_env.losses import nt_xent
from astra_env.models import Target
from astra_env.randomness import generator


class EncoderHeldOut(HeldOut):
    """Two fixed views of every held-out image, encoded by the branch that the trained network is used with.

    Args:
        trained: the encoder in training.
        used: returns the encoder that would be used if training ended now.
        dataset: the held-out images.
        augment: the training's augmentation.
        branch: of the norms.
        temperature: of NT-Xent.
        norm: of the attacks' ball.
        device: where the network is.
    """

    def __init__(
        self,
        trained: Target,
        used: Callable[[], Target],
        dataset: ImageDataset,
        augment: SimCLRAugment,
        branch: str,
        temperature: float,
        norm: str,
        device: torch.device,
    ) -> None:
        raw = dataset.gather(torch.arange(len(dataset)), device)
        self.trained: Target = trained
        self._used = used
        self.images = raw.float() / 255
        self.labels = dataset.labels.to(device)
        self.views = augment(raw, generator(SEED, "held-out views"))
        self.branch = branch
        self.temperature = temperature
        self.norm = norm

    @property
    def network(self) -> Target:
        """The encoder that would be used if training ended now."""
        return self._used()

    def robust_loss(self, attack: Reference, *, differentiable: bool = False) -> Tensor:
        """Return NT-Xent of the attacked views, a float64 scalar."""
        network = self.trained if differentiable else self.network
        found = contrastive_attack(
            network,
            self.views,
            attack.attack(self.norm).strategy(len(self.views), self.views.device),
            norm=self.norm,
            branch=self.branch,
            generator=generator(SEED, "held-out attack", self.views.device),
            objective=Contrastive(self.temperature),
            final_outputs=not differentiable,
        )
        features = found.outputs
        if features is None:
            with in_mode(network):
                features = network(found.adversarial, branch=self.branch)
        return nt_xent(features.double(), self.temperature)

    def embeddings(self, images: Tensor) -> Tensor:
        """Images (n, 3, S, S) in [0, 1] -> backbone embeddings (n, E), in eval mode."""
        network = self.network
        with in_mode(network):
            return network.embed(images, self.branch)

    def attacked(self, images: Tensor, labels: Tensor, classify: Any, attack: Reference) -> Tensor:
        """Return ``images`` attacked to raise the cross-entropy of ``classify(embeddings(images))``."""
        network = self.network
        found = supervised_attack(
            network,
            images,
            labels,
            attack.attack(self.norm).strategy(len(images), images.device),
            norm=self.norm,
            generator=generator(SEED, "held-out attack", images.device),
            forward=lambda batch: classify(network.embed(batch, self.branch)),
        )
        return found.adversarial
