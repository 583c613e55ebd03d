"""Pseudo-labels: k-means clusters of images that have no labels."""

import torch
from torch import Tensor

from astra_env.errors import InputError

FULL_LIMIT = 10_000
"""Up to this many rows k-means looks at all of them in every iteration, beyond at minibatches."""


def kmeans_labels(features: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """Return every row's cluster, int64 (N,) on the CPU; features (N, D).

    Raises:
        InputError: for features that are not finite, or more clusters than rows.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if not 1 <= clusters <= len(features):
        raise InputError(f"clusters: expected 1 to {len(features)}, the number of images, got {clusters}")
    if not bool(torch.isfinite(features).all()):
        raise InputError("clusters: expected finite features, got NaN or infinity; are the encoder's weights whole?")
    values = features.detach().cpu().double().numpy()
    if len(values) <= FULL_LIMIT:
        found = KMeans(clusters, n_init=1, random_state=seed % 2**32).fit(values)
    else:
        found = MiniBatchKMeans(clusters, n_init=3, batch_size=4096, random_state=seed % 2**32).fit(values)
    return torch.from_numpy(found.labels_).to(torch.int64)
