"""The held-out images of a contrastive training, and how robust the encoder is on them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from astra_env.attacks import Contrastive, contrastive_attack, supervised_attack
from astra_env.augment import SimCLRAugment
from astra_env.data import ImageDataset
from astra_env.learner.outcome import SEED, HeldOut, Reference
from astra_env.losses import nt_xent
from astra_env.models import Target
from astra_env.randomness import generator


class EncoderHeldOut(HeldOut):
    """Two fixed views of every held-out image, encoded by the branch that the trained network is used with.

    Args:
        encoder: returns the encoder to measure: the network that would be used if training ended now.
        dataset: the held-out images.
        augment: the training's augmentation.
        branch: of the norms.
        temperature: of NT-Xent.
        norm: of the attacks' ball.
        device: where the network is.
    """

    def __init__(
        self,
        encoder: Callable[[], Target],
        dataset: ImageDataset,
        augment: SimCLRAugment,
        branch: str,
        temperature: float,
        norm: str,
        device: torch.device,
    ) -> None:
        rows = torch.arange(len(dataset))
        raw = dataset.gather(rows, device)
        self._encoder = encoder
        self.images = raw.float() / 255
        self.labels = dataset.labels.to(device)
        self.views = augment(raw, generator(SEED, "held-out views"))
        self.branch = branch
        self.temperature = temperature
        self.norm = norm

    @property
    def network(self) -> Target:
        """The encoder."""
        return self._encoder()

    def robust_loss(self, attack: Reference, *, differentiable: bool = False) -> Tensor:
        """Return NT-Xent of the attacked views, a float64 scalar."""
        found = contrastive_attack(
            self.network,
            self.views,
            attack.attack(self.norm).strategy(len(self.views), self.views.device),
            norm=self.norm,
            branch=self.branch,
            generator=generator(SEED, "held-out attack", self.views.device),
            objective=Contrastive(self.temperature),
            final_outputs=not differentiable,
        )
        features = self._encoded(found.adversarial) if found.outputs is None else found.outputs
        return nt_xent(features.double(), self.temperature)

    def embeddings(self, images: Tensor) -> Tensor:
        """Images (n, 3, S, S) in [0, 1] -> backbone embeddings (n, E), in eval mode."""
        return self._in_eval(lambda: self.network.embed(images, self.branch))

    def attacked(self, images: Tensor, labels: Tensor, classify: Any, attack: Reference) -> Tensor:
        """Return ``images`` attacked to raise the cross-entropy of ``classify(embeddings(images))``."""
        found = supervised_attack(
            self.network,
            images,
            labels,
            attack.attack(self.norm).strategy(len(images), images.device),
            norm=self.norm,
            generator=generator(SEED, "held-out attack", images.device),
            forward=lambda batch: classify(self.network.embed(batch, self.branch)),
        )
        return found.adversarial

    def _encoded(self, views: Tensor) -> Tensor:
        return self._in_eval(lambda: self.network(views, branch=self.branch))

    def _in_eval(self, forward: Callable[[], Tensor]) -> Tensor:
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            return forward()
        finally:
            for module, training in modes:
                module.training = training
