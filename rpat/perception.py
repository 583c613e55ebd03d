"""How far a classifier's perception moves under attack, and whether "failure cases are better learned" holds for it.

Perception of an image is its logits z(x). The RPAT paper (2025, section 3) compares the mean squared distance of z(x)
and z(x') between images that the attack broke and images that withstood it. Here every image counts once, in one of
three strata, so that images the network never had right do not blur the comparison.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.attacks import frozen, get_norm, supervised_pgd
from astra_env.data import ImageDataset
from astra_env.errors import InputError
from astra_env.evaluation.measures.batches import device_of, ordered_batches, require_labels, take
from astra_env.strategy import Attack

STRATA = ("clean_wrong", "broken", "defended")
"""Wrong already on x; right on x but wrong on x'; right on both."""

MEASURES = ("adversarial", "noise", "adversarial_relative", "noise_relative")
"""Squared distance per class to x' and to a noisy x of the same radius; relative: over the variance of z(x)."""

RESAMPLES = 1000
TINY = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Claim:
    """Whether broken images moved less than defended ones.

    Attributes:
        difference: mean distance of broken minus that of defended images; None when a stratum is empty.
        verdict: "holds" (the interval lies below 0), "contradicted" (above 0), "undecided" or "not testable".
    """

    difference: Estimate | None
    verdict: str


@dataclass(frozen=True)
class PerceptionReport:
    """What :func:`analyse` found.

    Attributes:
        counts: images by stratum.
        distances: by measure, then stratum; None for an empty stratum.
        claims: by measure.
        positions: places on the segment from x to x'.
        paths: by stratum that is not empty, mean ``distance`` from z(x) and ``deviation`` from the straight line at
            every position, both as a share of ``|z(x') - z(x)|``.
        settings: the attack that was used.
    """

    counts: dict[str, int]
    distances: dict[str, dict[str, Estimate | None]]
    claims: dict[str, Claim]
    positions: list[float]
    paths: dict[str, dict[str, list[float]]]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return strata, distances and verdicts as Markdown."""
        lines = ["| stratum | images | " + " | ".join(MEASURES) + " |", "|---|---|" + "---|" * len(MEASURES)]
        for stratum in STRATA:
            cells = [_cell(self.distances[measure][stratum]) for measure in MEASURES]
            lines.append(f"| {stratum} | {self.counts[stratum]} | {' | '.join(cells)} |")
        lines += ["", "| broken - defended | difference | failure cases are better learned |", "|---|---|---|"]
        for measure, claim in self.claims.items():
            lines.append(f"| {measure} | {_cell(claim.difference)} | {claim.verdict} |")
        return "\n".join(lines) + "\n"


def analyse(
    model: nn.Module,
    dataset: ImageDataset,
    attack: Attack,
    *,
    points: int = 11,
    batch_size: int = 256,
    seed: int = 0,
    max_images: int | None = None,
    progress: bool = False,
) -> PerceptionReport:
    """Measure a classifier's perception under PGD, under noise and on the way from x to x'.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits (N, K); used in eval mode and left as it was found.
        dataset: labelled images.
        attack: its radius and norm are the noise's too.
        points: positions on the segment, ends included.
        batch_size: images attacked at once.
        seed: of the attack's start, the noise and the bootstrap.
        max_images: draw this many images; default all.
        progress: show a progress bar.

    Raises:
        InputError: for fewer than two points or an attack that cannot be used.
    """
    if points < 2:
        raise InputError(f"points: expected at least 2 (x and x'), got {points}; raise it")
    require_labels(dataset)
    positions = torch.linspace(0, 1, points).tolist()
    source = torch.Generator().manual_seed(seed)
    measured: list[dict[str, Tensor]] = []
    batches = ordered_batches(
        take(dataset, max_images), batch_size, device_of(model), title="perception", progress=progress
    )
    with frozen(model):
        for images, labels in batches:
            adversarial = supervised_pgd(model, images, labels, **asdict(attack), generator=source)
            noisy = (images + get_norm(attack.norm).uniform(images, attack.epsilon, source)).clamp(0, 1)
            measured.append(_measure(model, images, labels, adversarial, noisy, positions))
    samples = {name: torch.cat([batch[name] for batch in measured]).cpu() for name in measured[0]}
    settings = {**asdict(attack), "seed": seed}
    return _summarise(samples, positions, settings)


def write_perception(
    report: PerceptionReport, folder: str | Path, title: str = "", context: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write ``perception.json``, ``perception.md`` and ``perception.png`` into ``folder`` and return their paths.

    ``context`` (command, machine, versions) goes into the JSON beside the report.
    """
    from astra_env.plotting.perception import plot_perception_path
    from astra_env.plotting.style import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / "perception.json", folder / "perception.md"
    data.write_text(json.dumps({**(context or {}), **report.as_dict()}, indent=2) + "\n")
    text.write_text((f"# {title}\n\n" if title else "") + report.table())
    figure = plot_perception_path(report.positions, report.paths, title=title)
    return [data, text, save(figure, folder / "perception.png")]


@torch.no_grad()
def _measure(
    model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, noisy: Tensor, positions: list[float]
) -> dict[str, Tensor]:
    """Return stratum, distances (N,) and paths (N, points) of every image."""
    clean, attacked = model(images), model(adversarial)
    right, withstood = clean.argmax(1) == labels, attacked.argmax(1) == labels
    spread = clean.var(1, unbiased=False).clamp_min(TINY)
    distance, noise = ((other - clean).square().mean(1) for other in (attacked, model(noisy)))
    way = (attacked - clean).norm(dim=1).clamp_min(TINY)
    moved, off = [], []
    for position in positions:
        logits = model(images + position * (adversarial - images))
        moved.append((logits - clean).norm(dim=1) / way)
        off.append((logits - torch.lerp(clean, attacked, position)).norm(dim=1) / way)
    return {
        "stratum": right.long() + (right & withstood).long(),
        "adversarial": distance,
        "noise": noise,
        "adversarial_relative": distance / spread,
        "noise_relative": noise / spread,
        "distance": torch.stack(moved, 1),
        "deviation": torch.stack(off, 1),
    }


def _summarise(samples: dict[str, Tensor], positions: list[float], settings: dict[str, Any]) -> PerceptionReport:
    source = torch.Generator().manual_seed(settings["seed"])
    masks = {name: samples["stratum"] == index for index, name in enumerate(STRATA)}
    distances: dict[str, dict[str, Estimate | None]] = {}
    claims = {}
    for measure in MEASURES:
        values = {name: samples[measure][mask].double() for name, mask in masks.items()}
        means = {name: _bootstrap(part, source) for name, part in values.items()}
        distances[measure] = {name: _estimate(values[name].mean(), means[name], len(values[name])) for name in STRATA}
        difference = _estimate(
            values["broken"].mean() - values["defended"].mean(),
            means["broken"] - means["defended"] if len(means["broken"]) == len(means["defended"]) else Tensor(),
            len(values["broken"]) + len(values["defended"]),
        )
        claims[measure] = Claim(difference, _verdict(difference))
    paths = {
        name: {curve: samples[curve][mask].mean(0).tolist() for curve in ("distance", "deviation")}
        for name, mask in masks.items()
        if bool(mask.any())
    }
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return PerceptionReport(counts, distances, claims, positions, paths, settings)


def _bootstrap(values: Tensor, source: torch.Generator) -> Tensor:
    """Return the means (RESAMPLES,) of resampled ``values``; empty when there are none."""
    if len(values) == 0:
        return values
    return torch.stack(list(_resampled_means(values, source)))


def _resampled_means(values: Tensor, source: torch.Generator) -> Iterator[Tensor]:
    for _ in range(RESAMPLES):
        yield values[torch.randint(len(values), (len(values),), generator=source)].mean()


def _estimate(mean: Tensor, resampled: Tensor, count: int) -> Estimate | None:
    if len(resampled) == 0:
        return None
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    return Estimate(float(mean), low, high, count)


def _verdict(difference: Estimate | None) -> str:
    if difference is None:
        return "not testable"
    if difference.high < 0:
        return "holds"
    return "contradicted" if difference.low > 0 else "undecided"


def _cell(estimate: Estimate | None) -> str:
    return "empty" if estimate is None else f"{estimate.mean:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
