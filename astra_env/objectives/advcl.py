"""AdvCL: high-frequency views and pseudo-labels preserve robustness across fine-tuning (Fan et al. 2021)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import Objective, frozen
from astra_env.errors import CheckpointError, ConfigError
from astra_env.losses import interleave, multi_view_nt_xent
from astra_env.models import load_official
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, Setting, TrainingObjective
from astra_env.objectives.pseudo_labels import cluster_counts, label_heads, pseudo_labels
from astra_env.randomness import derive_seed, generator
from astra_env.storage.checkpoint import load_checkpoint


@dataclass
class AdvCLOptions:
    """``learner.objective_args`` of advcl."""

    clusters: list[int] = field(default_factory=lambda: [2, 10, 50, 100, 500])
    """Numbers of k-means clusters, one pseudo-label head each; at most half as many as images."""
    pseudo_weight: float = 0.2
    """Weight of the pseudo-labels' cross-entropy."""
    base_temperature: float = 0.07
    """The contrastive loss is multiplied by temperature over this, as supervised contrastive learning scales it."""
    radius: float = 8.0
    """Radius of the low frequencies that the high-frequency view lacks, for 32 pixels; scaled with the image."""
    encoder: str | None = None
    """Checkpoint of an encoder like this run's whose embeddings are clustered; default thumbnails of the images."""


def high_frequencies(images: Tensor, radius: float) -> Tensor:
    """Return images (N, C, H, W) without the frequencies that lie within ``radius`` of zero; not limited to [0, 1]."""
    rows, columns = (torch.fft.fftfreq(size, 1 / size, device=images.device) for size in images.shape[-2:])
    keep = (rows[:, None].square() + columns[None].square()).sqrt() >= radius
    return torch.fft.ifft2(torch.fft.fft2(images.float()) * keep).real


@dataclass(frozen=True, eq=False)
class Away:
    """What the attack raises, of features and pseudo-logits (2B, D + sum of clusters) side by side.

    First views leave the fixed clean views and the high-frequency view (B, 3, D) of their image; second views leave
    their pseudo-labels, (B,) per head.
    """

    fixed: Tensor
    labels: Sequence[Tensor]
    clusters: Sequence[int]
    temperature: float
    scale: float
    weight: float
    joint: ClassVar[bool] = True

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the contrastive loss of first views plus the weighted cross-entropy of second views."""
        features, logits = outputs.split([self.fixed.shape[2], sum(self.clusters)], dim=1)
        views = torch.cat((features[0::2].unsqueeze(1), self.fixed), dim=1)
        entropy = pseudo_entropy(logits[1::2].split(list(self.clusters), dim=1), self.labels)
        return self.scale * multi_view_nt_xent(views, self.temperature) + self.weight * entropy


def pseudo_entropy(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Return the mean cross-entropy over heads: logits (B, K) and labels (B,) of each."""
    return torch.stack([F.cross_entropy(head, label) for head, label in zip(logits, labels, strict=True)]).mean()


@OBJECTIVES.register("advcl")
class AdvCL(TrainingObjective):
    """(t / .07) NT-Xent over {t1, t2, adv, high-frequency} + .2 * cross-entropy of k-means pseudo-labels.

    Published attack: 8/255, 5 steps of 2/255 from a start that is not clipped to the image box, in training mode
    (``learner.attack_mode: train``), where every kind of view is a batch of its own for BatchNorm. As published, one
    adversarial example is made against the contrastive loss and another against the pseudo-labels: here the first view
    of a pair is the one, the second the other. The published code perturbs and filters a third, weakly augmented view;
    keeps a third set of norms for pseudo-labels, whose running statistics share the adv branch here; forwards clean
    views at every step of the attack, so that the clean norms' running statistics move 18 times a step and not 6; and
    takes its clusters from a network pre-trained on ImageNet: give ``encoder`` for anything but thumbnails. Its
    learning rate differs from preset advcl's by at most .01 of .5.
    """

    clip_start: ClassVar[bool] = False
    Options: ClassVar[type] = AdvCLOptions

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        if not options.clusters or min(options.clusters) < 2:
            raise ConfigError(f"learner.objective_args.clusters: expected integers >= 2, got {options.clusters}")
        for name in ("pseudo_weight", "radius"):
            if not 0 <= getattr(options, name) < float("inf"):
                value = getattr(options, name)
                raise ConfigError(f"learner.objective_args.{name}: expected a finite number >= 0, got {value}")
        if not 0 < options.base_temperature < float("inf"):
            raise ConfigError(
                f"learner.objective_args.base_temperature: expected a finite number > 0, got {options.base_temperature}"
            )
        self.scale = self.temperature / options.base_temperature
        self.clusters = cluster_counts(options.clusters, len(setting.dataset))
        source = generator(setting.config.seed, "pseudo-label heads")
        self.heads = label_heads(setting.target.embed_dim, self.clusters, source, setting.device)
        self.labels = [torch.zeros(len(setting.dataset), dtype=torch.int64) for _ in self.clusters]
        self.labels = [labels.to(setting.device) for labels in self.labels]
        self.labelled = 0

    @property
    def left_to_prepare(self) -> int:
        """1 until the images are clustered, once in a training."""
        return 0 if self.labelled else 1

    def prepare(self) -> None:
        """Cluster the images."""
        setting, encoder = self.setting, None
        if self.options.encoder is not None:
            encoder = load_official(copy.deepcopy(self.target), load_checkpoint(self.options.encoder)).eval()
        seed = derive_seed(setting.config.seed, "clusters")
        self.labels = pseudo_labels(setting.dataset, self.clusters, encoder, seed, setting.device)
        self.labelled = 1

    def attack_goal(self, batch: Batch) -> Objective:
        """Return what drives first views from their image's other views and second ones from their pseudo-labels."""
        first, second = batch.views[0::2], batch.views[1::2]
        with frozen(self.target, self.setting.config.learner.attack_mode), torch.no_grad():
            fixed = torch.stack([self.target(x, branch="clean") for x in (first, second, self._high(first))], dim=1)
        labels, weight = self._labels_of(batch), self.options.pseudo_weight
        return Away(fixed, labels, self.clusters, self.temperature, self.scale, weight)

    def outputs(self, views: Tensor, branch: str) -> Tensor:
        """Views (n, 3, H, W) -> features and pseudo-logits side by side (n, D + sum of clusters).

        In training mode these are all 2B views, and first and second ones are a batch each.
        """
        if self.target.training:
            return interleave(self._outputs(views[0::2], branch), self._outputs(views[1::2], branch))
        return self._outputs(views, branch)

    def _outputs(self, views: Tensor, branch: str) -> Tensor:
        embedding = self.target.embed(views, branch)
        logits = [head(embedding) for head in self.heads]
        return torch.cat((self.target.project(embedding, branch), *logits), dim=1)

    def features(self, outputs: Tensor) -> Tensor:
        """Return the projected features (n, D) alone."""
        return outputs[:, : outputs.shape[1] - sum(self.clusters)]

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses; attacked views go through the adv branch, all others through the clean one."""
        first, second = batch.views[0::2], batch.views[1::2]
        adv, embedding = encode(adversarial[0::2], "adv"), encode.embed(adversarial[1::2], "adv")
        clean = [encode(views, "clean") for views in (first, second, self._high(first))]
        contrastive = self.scale * multi_view_nt_xent(torch.stack((adv, *clean), dim=1), self.temperature)
        entropy = pseudo_entropy([head(embedding) for head in self.heads], self._labels_of(batch))
        total = contrastive + self.options.pseudo_weight * entropy
        return Losses(total, {"contrastive_loss": contrastive, "pseudo_loss": entropy})

    def parameters(self) -> list[nn.Parameter]:
        """Return the pseudo-label heads' parameters."""
        return list(self.heads.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Return heads and pseudo-labels."""
        return {"heads": self.heads.state_dict(), "labels": list(self.labels), "labelled": self.labelled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken; raises CheckpointError for labels of other clusters."""
        for index, (given, count) in enumerate(zip(state["labels"], self.clusters, strict=True)):
            if len(given) and not (int(given.min()) >= 0 and int(given.max()) < count):
                raise CheckpointError(f"checkpoint: objective.labels.{index}: expected clusters 0..{count - 1}")
        self.heads.load_state_dict(state["heads"])
        self.labels = [labels.to(self.setting.device) for labels in state["labels"]]
        self.labelled = state["labelled"]

    def _labels_of(self, batch: Batch) -> list[Tensor]:
        rows = batch.indices.to(self.setting.device)
        return [labels[rows] for labels in self.labels]

    def _high(self, views: Tensor) -> Tensor:
        return high_frequencies(views, self.options.radius * views.shape[-1] / 32)
