"""The measurements an evaluation asks for: each a name, its settings, and a function that makes it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, World
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.measures.auto_attack import autoattack
from astra_env.evaluation.measures.batches import take, to_unit
from astra_env.evaluation.measures.corruption import corruption_accuracy
from astra_env.evaluation.measures.curves import noise_curve, path_curve, radius_curve
from astra_env.evaluation.measures.parts import Parts, fingerprint
from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
from astra_env.strategy import Attack

OBJECTIVES = {"pgd": "cross_entropy", "cw": "margin"}


@dataclass(frozen=True)
class Measurement:
    """One thing to measure.

    Attributes:
        name: unique within a network.
        settings: what it depends on beside the network and the data, as plain values.
        compute: makes the result, as plain values.
        spread: whether the ranks of a run make it together; else rank 0 alone does.
    """

    name: str
    settings: dict[str, Any]
    compute: Callable[[], dict[str, Any]]
    spread: bool = False


def measurements(
    config: EvaluationConfig,
    model: nn.Module,
    test: ImageDataset,
    state: Path,
    *,
    progress: bool = False,
    world: World = ALONE,
) -> Iterator[Measurement]:
    """Yield what the configuration asks for, cheapest first; ``state`` is the stem of state files.

    Accuracies on clean images, under PGD and under noise are measured by all ranks together.
    """
    size = config.attack.batch_size
    yield Measurement(
        "clean",
        {},
        lambda: clean_accuracy(model, test, batch_size=size, progress=progress, world=world).as_dict(),
        spread=True,
    )
    if config.corruptions is not None:
        yield corruptions(config, model, test, state, progress=progress)
    for attack in config.attacks:
        for epsilon in config.epsilons:
            if attack in OBJECTIVES:
                yield pgd(config, model, test, attack, epsilon, progress=progress, world=world)
    for curve in config.curves:
        yield curve_of(config, model, test, curve, state, progress=progress, world=world)
    for attack in config.attacks:
        for epsilon in config.epsilons:
            if attack not in OBJECTIVES:
                yield auto_attack(config, model, test, attack, epsilon, state, progress=progress)


def pgd(
    config: EvaluationConfig,
    model: nn.Module,
    test: ImageDataset,
    attack: str,
    epsilon: float,
    *,
    progress: bool = False,
    world: World = ALONE,
) -> Measurement:
    """Return PGD with the cross-entropy ("pgd") or the margin ("cw") at one radius."""
    strength = {
        "epsilon": epsilon,
        "steps": config.attack.steps,
        "step_size": config.step_size,
        "norm": config.attack.norm,
    }
    options: dict[str, Any] = {
        "restarts": config.attack.restarts,
        "objective": OBJECTIVES[attack],
        "seed": config.seed,
    }
    title = "C&W-margin PGD" if attack == "cw" else "PGD"
    label = ""
    if config.attack.precision != "fp32":
        options["precision"] = config.attack.precision
        label = f" (found in {config.attack.precision})"
    return Measurement(
        f"{title}-{config.attack.steps} {radius_name(epsilon, config.attack.norm)}{label}",
        {**strength, **options},
        lambda: robust_accuracy(
            model,
            test,
            config.attack_within(epsilon),
            batch_size=config.attack.batch_size,
            progress=progress,
            world=world,
            **options,
        ).as_dict(),
        spread=True,
    )


def auto_attack(
    config: EvaluationConfig,
    model: nn.Module,
    test: ImageDataset,
    attack: str,
    epsilon: float,
    state: Path,
    *,
    progress: bool = False,
) -> Measurement:
    """Return AutoAttack, or its quick subset under a name that says so, at one radius."""
    version = "quick" if attack == "autoattack_quick" else "standard"
    options: dict[str, Any] = {
        "epsilon": epsilon,
        "norm": config.attack.norm,
        "version": version,
        "seed": config.seed,
        "batch_size": config.attack.batch_size,
    }

    def compute() -> dict[str, Any]:
        state.parent.mkdir(parents=True, exist_ok=True)
        path = state.with_name(f"{state.name}-{version}-{config.attack.norm}-{255 * epsilon:g}.pt")
        found = autoattack(model, to_unit(test.images), test.labels, state_path=path, progress=progress, **options)
        return {
            **found.robust.as_dict(),
            "label": found.label,
            "after": {name: accuracy.as_dict() for name, accuracy in found.after.items()},
            "warnings": found.warnings,
        }

    title = "AutoAttack" if version == "standard" else "AutoAttack subset (APGD only)"
    return Measurement(f"{title} {radius_name(epsilon, config.attack.norm)}", options, compute)


def curve_of(
    config: EvaluationConfig,
    model: nn.Module,
    test: ImageDataset,
    curve: str,
    state: Path,
    *,
    progress: bool = False,
    world: World = ALONE,
) -> Measurement:
    """Return the curve called radius, noise or path."""
    common: dict[str, Any] = {"norm": config.attack.norm, "seed": config.seed}
    if curve != "noise":
        common["steps"] = config.attack.steps
    if curve == "path":
        common["epsilon"] = max(config.epsilons)
    spread = curve != "path"
    whole: dict[str, Any] = {"batch_size": config.attack.batch_size, "progress": progress}
    function: Callable[..., Any]
    if curve == "path":
        attack = Attack.crossing(common["epsilon"], config.attack.steps, config.attack.norm)
        function = partial(path_curve, attack=attack, seed=config.seed)
    else:
        function = partial(radius_curve if curve == "radius" else noise_curve, **common)

    def compute() -> dict[str, Any]:
        if not spread or not world.alone:
            # What was measured before an interruption is known to one process only, so several start anew.
            ranks = {"world": world} if spread else {}
            return function(model, test, **whole, **ranks).as_dict()
        parts = Parts(_parts_file(state, curve), fingerprint(model, test.images, test.labels, common))
        found = function(model, test, remember=parts, **whole)
        parts.finish()
        return found.as_dict()

    return Measurement(f"curve: {curve}", common, compute, spread)


def corruptions(
    config: EvaluationConfig, model: nn.Module, test: ImageDataset, state: Path, *, progress: bool = False
) -> Measurement:
    """Return the accuracies under the corruptions in the configured folder."""
    options = {"folder": str(config.corruptions), "max_images": config.data.max_test_images}

    def compute() -> dict[str, Any]:
        parts = Parts(_parts_file(state, "corruptions"), fingerprint(model, test.images, test.labels, options))
        found = corruption_accuracy(
            model,
            str(config.corruptions),
            test.classes,
            batch_size=config.attack.batch_size,
            max_images=config.data.max_test_images,
            remember=parts,
            progress=progress,
        )
        parts.finish()
        return found.as_dict()

    return Measurement("corruptions", options, compute)


def _parts_file(state: Path, what: str) -> Path:
    return state.parent.with_name("unfinished") / f"{state.name}-{what}.json"


def radius_name(epsilon: float, norm: str) -> str:
    """Return a radius as people write it, such as "linf 8/255"."""
    return f"{norm} {255 * epsilon:.4g}/255"


def test_part(config: EvaluationConfig, test: ImageDataset) -> ImageDataset:
    """Return the test images to measure on: all, or as many as the configuration says, drawn from its seed."""
    return take(test, config.data.max_test_images, config.seed)
