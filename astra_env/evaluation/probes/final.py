"""The measurement at the end of a training run."""

from dataclasses import replace
from typing import Any

import torch

from astra_env.config.checks import positive
from astra_env.config.schema import ExperimentConfig, ProbeConfig
from astra_env.data.training_images import load_training_images
from astra_env.errors import DataError
from astra_env.evaluation.measures.batches import require_alike, require_labels
from astra_env.evaluation.probes.linear import ProbeResult, measure_classifier, probe
from astra_env.learner.protocol import Learner
from astra_env.strategy import Attack, check_pixel_units, parse_number

PAPERS_STEP_SIZE = 2 / 255
"""Of the PGD-20 that the papers report, in the maximum norm."""


def require_measurable(learner: Learner, config: ExperimentConfig, *, progress: bool = False) -> None:
    """Raise, before a run's first step, what its measurement would end with.

    Test images, and for an encoder training images, must be there, readable, labelled and alike. They are decoded into
    the cache, where the measurement finds them, and not kept in memory.

    Raises:
        ConfigError: for a number of ``config.probe`` that cannot be used.
        DataError: for images that are missing or cannot be used.
    """
    options = config.probe
    if not options.enabled:
        return
    for value in options.epsilon:
        radius = parse_number("probe.epsilon", value)
        if learner.norm == "linf":
            check_pixel_units("probe.epsilon", radius)
    if options.step_size is not None:
        positive("probe.step_size", parse_number("probe.step_size", options.step_size))
    data, cpu = replace(config.data, host_budget_mib=0), torch.device("cpu")
    try:
        test, train = (load_training_images(data, cpu, split, progress=progress) for split in ("test", "train"))
        require_labels(test)
        require_labels(train)
        require_alike(train, test)
    except DataError as error:
        raise DataError(
            f"probe.enabled: the run ends with a measurement on labelled test images ({error}); or train without it: "
            "--probe.enabled false"
        ) from error


def probe_learner(learner: Learner, config: ExperimentConfig, *, progress: bool = False) -> ProbeResult:
    """Measure what a learner has trained, clean and under PGD, by the settings of ``config.probe``.

    A classifier is measured as it is, an encoder through a linear probe; both in the norm of training.
    """
    options, data, device = config.probe, config.data, learner.device
    attacks = _attacks(options, learner.norm)
    test = load_training_images(data, device, "test", progress=progress)
    measured: Any = {"max_test_images": options.max_test_images, "seed": config.seed, "progress": progress}
    if learner.classifies:
        return measure_classifier(learner.final_network, test, attacks, **measured)
    return probe(
        learner.final_network,
        load_training_images(data, device, "train", progress=progress),
        test,
        attacks,
        branch=learner.branch,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        augment=options.augment,
        **measured,
    )


def _attacks(options: ProbeConfig, norm: str) -> list[Attack]:
    """Return the attack of every radius, in the norm of training, with the papers' steps where that is l-inf."""
    size: float | str | None = options.step_size
    if size is None and norm == "linf":
        size = PAPERS_STEP_SIZE
    radii = [parse_number("probe.epsilon", value) for value in options.epsilon]
    if size is None:
        return [Attack.crossing(radius, options.steps, norm) for radius in radii]
    return [Attack(radius, parse_number("probe.step_size", size), options.steps, norm) for radius in radii]
