"""Pseudo-labels of a data set at several granularities, and linear heads that predict them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.data import ImageDataset
from astra_env.data.clustering import kmeans_labels
from astra_env.models import Target
from astra_env.models.layers import build

THUMBNAIL = 8
"""Side of the images that are clustered when there is no encoder."""
AT_ONCE = 512


def cluster_counts(wanted: Sequence[int], images: int) -> list[int]:
    """Return the numbers of clusters that so many images allow: at most half of them, without repetition."""
    return list(dict.fromkeys(min(count, max(2, images // 2)) for count in wanted))


def pseudo_labels(
    dataset: ImageDataset, counts: Sequence[int], encoder: Target | None, seed: int, device: torch.device
) -> list[Tensor]:
    """Cluster all images once per number of clusters; returns int64 (N,) each, on ``device``.

    Clustered are the clean-branch embeddings of ``encoder``, or thumbnails of 8 x 8 pixels without one.
    """
    pieces = torch.arange(len(dataset)).split(AT_ONCE)
    features = torch.cat([_describe(dataset, rows, encoder, device) for rows in pieces])
    return [kmeans_labels(features, count, seed).to(device) for count in counts]


def label_heads(size: int, counts: Sequence[int], generator: torch.Generator, device: torch.device) -> nn.ModuleList:
    """Return one linear layer from embeddings (N, size) to the clusters of every granularity."""
    return build(lambda: nn.ModuleList(nn.Linear(size, count) for count in counts), generator).to(device)


@torch.no_grad()
def _describe(dataset: ImageDataset, rows: Tensor, encoder: Target | None, device: torch.device) -> Tensor:
    images = dataset.gather(rows, device).float() / 255
    if encoder is None:
        return F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1).cpu()
    return encoder.embed(images, "clean").cpu()
