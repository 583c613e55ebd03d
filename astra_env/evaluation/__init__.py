"""Evaluation: linear probes, fine-tuning, attacks, corruptions; nothing here is chosen on the test images.

Names are imported at first use: reading an evaluation's configuration does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astra_env.evaluation.accuracy import Accuracy
    from astra_env.evaluation.auto_attack import AutoAttackResult, autoattack
    from astra_env.evaluation.classifier import EncoderClassifier
    from astra_env.evaluation.corruption import CorruptionResult, corruption_accuracy
    from astra_env.evaluation.curves import Curve, noise_curve, path_curve, radius_curve
    from astra_env.evaluation.final import probe_learner
    from astra_env.evaluation.finetuning import finetune
    from astra_env.evaluation.linear import ProbeResult, TrainingAttack, linear_probe, measure_classifier, probe
    from astra_env.evaluation.robustness import clean_accuracy, robust_accuracy
    from astra_env.evaluation.semi_supervision import semi_supervised

__all__ = [
    "Accuracy",
    "AutoAttackResult",
    "CorruptionResult",
    "Curve",
    "EncoderClassifier",
    "ProbeResult",
    "TrainingAttack",
    "autoattack",
    "clean_accuracy",
    "corruption_accuracy",
    "finetune",
    "linear_probe",
    "measure_classifier",
    "noise_curve",
    "path_curve",
    "probe",
    "probe_learner",
    "radius_curve",
    "robust_accuracy",
    "semi_supervised",
]

_HOMES = {
    "Accuracy": "accuracy",
    "AutoAttackResult": "auto_attack",
    "CorruptionResult": "corruption",
    "Curve": "curves",
    "EncoderClassifier": "classifier",
    "ProbeResult": "linear",
    "TrainingAttack": "linear",
    "autoattack": "auto_attack",
    "clean_accuracy": "robustness",
    "corruption_accuracy": "corruption",
    "finetune": "finetuning",
    "linear_probe": "linear",
    "measure_classifier": "linear",
    "noise_curve": "curves",
    "path_curve": "curves",
    "probe": "linear",
    "probe_learner": "final",
    "radius_curve": "curves",
    "robust_accuracy": "robustness",
    "semi_supervised": "semi_supervision",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
