"""The held-out images of a supervised training, and how robust the classifier is on them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import in_mode, supervised_attack
from astra_env.data import ImageDataset
from astra_env.learner.outcome import SEED, HeldOut, Reference
from astra_env.randomness import generator


class ClassifierHeldOut(HeldOut):
    """Held-out images as they are, and the classifier that would be used if training ended now.

    Args:
        trained: the classifier in training.
        used: returns the one that would be used if training ended now.
        dataset: the held-out images, labelled.
        norm: of the attacks' ball.
        device: where the network is.
    """

    def __init__(
        self, trained: nn.Module, used: Callable[[], nn.Module], dataset: ImageDataset, norm: str, device: torch.device
    ) -> None:
        self.trained = trained
        self._used = used
        self.images = dataset.gather(torch.arange(len(dataset)), device).float() / 255
        self.labels = dataset.labels.to(device)
        self.norm = norm

    @property
    def network(self) -> nn.Module:
        """The classifier that would be used if training ended now."""
        return self._used()

    def robust_loss(self, attack: Reference, *, differentiable: bool = False) -> Tensor:
        """Return the cross-entropy of the attacked images in eval mode, a float64 scalar."""
        network = self.trained if differentiable else self.network
        attacked = self._attacked(network, self.images, self.labels, lambda logits: logits, attack)
        with torch.set_grad_enabled(differentiable), in_mode(network):
            return F.cross_entropy(network(attacked).double(), self.labels)

    def embeddings(self, images: Tensor) -> Tensor:
        """Images (n, 3, S, S) in [0, 1] -> logits (n, C), in eval mode, with gradient."""
        network = self.network
        with in_mode(network):
            logits: Tensor = network(images)
        return logits

    def attacked(self, images: Tensor, labels: Tensor, classify: Any, attack: Reference) -> Tensor:
        """Return ``images`` attacked to raise the cross-entropy of ``classify(logits)``."""
        return self._attacked(self.network, images, labels, classify, attack)

    def _attacked(self, network: nn.Module, images: Tensor, labels: Tensor, classify: Any, attack: Reference) -> Tensor:
        return supervised_attack(
            network,
            images,
            labels,
            attack.attack(self.norm).strategy(len(images), images.device),
            norm=self.norm,
            generator=generator(SEED, "held-out attack", images.device),
            forward=lambda batch: classify(network(batch)),
        ).adversarial
