"""The measurement at the end of a training run."""

from astra_env.config.schema import ExperimentConfig
from astra_env.data.training_images import load_training_images
from astra_env.evaluation.probes.linear import ProbeResult, measure_classifier, probe
from astra_env.learner.protocol import Learner
from astra_env.strategy import parse_number

PAPERS_STEP_SIZE = 2 / 255
"""Of the PGD-20 that the papers report, in the maximum norm."""


def probe_learner(learner: Learner, config: ExperimentConfig, *, progress: bool = False) -> ProbeResult:
    """Measure what a learner has trained, clean and under PGD, by the settings of ``config.probe``.

    A classifier is measured as it is, in the norm it was attacked in; an encoder through a linear probe.
    """
    options, data, device = config.probe, config.data, learner.device
    epsilons = tuple(parse_number("probe.epsilon", value) for value in options.epsilon)
    step_size = PAPERS_STEP_SIZE if learner.norm == "linf" else None
    if options.step_size is not None:
        step_size = parse_number("probe.step_size", options.step_size)
    test = load_training_images(data, device, "test", progress=progress)
    if learner.classifies:
        return measure_classifier(
            learner.final_network,
            test,
            epsilons=epsilons,
            steps=options.steps,
            step_size=step_size,
            norm=learner.norm,
            max_test_images=options.max_test_images,
            seed=config.seed,
            progress=progress,
        )
    return probe(
        learner.final_network,
        load_training_images(data, device, "train", progress=progress),
        test,
        branch=learner.branch,
        epsilons=epsilons,
        steps=options.steps,
        step_size=step_size,
        max_test_images=options.max_test_images,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        augment=options.augment,
        seed=config.seed,
        progress=progress,
    )
