"""What a training step sends between processes: counted, predicted, and carried over to clusters that are not here.

The count is :attr:`World.traffic`: bytes that one rank puts into each kind of exchange. What its network interface then
sends depends on the algorithm; rings are assumed, the usual choice for large messages.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

UINT8, FLOAT, INT64 = 1, 4, 8


@dataclass(frozen=True)
class Workload:
    """One training step, as far as traffic and arithmetic depend on it.

    Attributes:
        parameters: of the target network; all have gradients, in float32.
        statistics: running means and variances of BatchNorm; 0 for GroupNorm.
        feature_dim: length of a projected feature.
        pixels: values of a view (3 * H * W).
        own_views: views of one rank in one step.
        iterations: gradient steps of the longest attack of the batch.
        mean_steps: gradient steps of the mean attack.
        flops_per_view: of one forward pass of the target network on one view.
        policy_flops_per_view: of the strategy network's work on one view in a step, done by every rank for the batch.
    """

    parameters: int
    statistics: int
    feature_dim: int
    pixels: int
    own_views: int
    iterations: int
    mean_steps: float
    flops_per_view: float
    policy_flops_per_view: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """What a step runs on: assumptions, to be replaced by measurements where there are any.

    Attributes:
        flops: sustained floating-point operations per second of one rank.
        bandwidth: bytes per second that one rank sends, over the slowest link of the ring.
        latency: seconds of one hop.
        overlap: share of the gradients' exchange that hides behind the backward pass.
    """

    flops: float
    bandwidth: float
    latency: float
    overlap: float = 0.0


def sent_bytes(work: Workload) -> dict[str, int]:
    """Return the bytes that one rank puts into each kind of exchange in a step, whatever the number of ranks."""
    gather = {
        "observation": work.own_views * work.pixels * UINT8,
        "attack": work.iterations * work.own_views * work.feature_dim * FLOAT,
        "reward": 2 * work.own_views * work.feature_dim * FLOAT,
        "loss": 2 * work.own_views * work.feature_dim * FLOAT,
        "gradient share": FLOAT,
    }
    return {
        "all_gather": sum(gather.values()),
        "gradients": work.parameters * FLOAT,
        "all_reduce": work.statistics * FLOAT + 2 * INT64,
    }


def broadcast_bytes(views: int) -> int:
    """Return the bytes of the chosen actions, which rank 0 sends for all views: three indices each."""
    return views * 3 * INT64


def ring_bytes(sent: Mapping[str, int], ranks: int) -> float:
    """Return the bytes that one rank's interface sends for what it puts in: rings of ``ranks`` members."""
    reduced = sent["gradients"] + sent["all_reduce"]
    return (ranks - 1) * sent["all_gather"] + 2 * (ranks - 1) / ranks * reduced


def step_seconds(work: Workload, cluster: Cluster, ranks: int) -> dict[str, float]:
    """Return the parts of one step's time on ``ranks`` ranks, each with ``work.own_views`` views.

    compute: attack (two forward passes a step and one for the outputs), reward (one), losses (six). repeated: what
    every rank does for the whole batch: the policy, and a similarity matrix in each attack step and three in the
    losses. exchange: bytes over bandwidth, and the latency of every ring.
    """
    own = work.own_views * work.flops_per_view * (2 * work.mean_steps + 1 + 1 + 6)
    batch = ranks * work.own_views
    similarity = 2 * batch**2 * work.feature_dim
    repeated = batch * work.policy_flops_per_view + similarity * 3 * (work.iterations + 2 + 4)
    sent = sent_bytes(work)
    gradients = 2 * (ranks - 1) / ranks * sent["gradients"] / cluster.bandwidth
    rest = ring_bytes({**sent, "gradients": 0}, ranks) / cluster.bandwidth
    rings = (work.iterations + 7) * (ranks - 1) + 2 * 3 * (ranks - 1)
    parts = {
        "compute": own / cluster.flops,
        "repeated": repeated / cluster.flops,
        "features": rest,
        "gradients": gradients * (1 - cluster.overlap),
        "latency": rings * cluster.latency if ranks > 1 else 0.0,
    }
    return {**parts, "total": sum(parts.values())}


def extrapolate(work: Workload, cluster: Cluster, ranks: list[int], total_views: int | None = None) -> dict[str, Any]:
    """Return the predicted step on each number of ranks.

    Every rank keeps its number of views (the batch grows), or shares ``total_views`` with the others. The efficiency is
    the speed in views per second and rank, relative to one rank.
    """
    rows = []
    for count in ranks:
        own = work if total_views is None else replace(work, own_views=total_views // count)
        seconds = step_seconds(own, cluster, count)
        rows.append({"ranks": count, "views": count * own.own_views, **seconds})
    first = rows[0]["total"] * rows[0]["ranks"] / rows[0]["views"]
    for row in rows:
        row["efficiency"] = first / (row["total"] * row["ranks"] / row["views"])
    return {"workload": asdict(work), "cluster": asdict(cluster), "rows": rows}
