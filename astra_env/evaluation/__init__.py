"""Evaluation: linear probes, fine-tuning, attacks, corruptions; nothing here is chosen on the test images.

Names are imported at first use: reading an evaluation's configuration does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astra_env.evaluation.measures.accuracy import Accuracy
    from astra_env.evaluation.measures.auto_attack import AutoAttackResult, autoattack
    from astra_env.evaluation.measures.corruption import CorruptionResult, corruption_accuracy
    from astra_env.evaluation.measures.curves import Curve, noise_curve, path_curve, radius_curve
    from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
    from astra_env.evaluation.probes.classifier import EncoderClassifier
    from astra_env.evaluation.probes.final import probe_learner, require_measurable
    from astra_env.evaluation.probes.finetuning import finetune
    from astra_env.evaluation.probes.linear import ProbeResult, linear_probe, measure_classifier, probe
    from astra_env.evaluation.probes.semi_supervision import semi_supervised

__all__ = [
    "Accuracy",
    "AutoAttackResult",
    "CorruptionResult",
    "Curve",
    "EncoderClassifier",
    "ProbeResult",
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
    "require_measurable",
    "robust_accuracy",
    "semi_supervised",
]

_HOMES = {
    "Accuracy": "measures.accuracy",
    "AutoAttackResult": "measures.auto_attack",
    "CorruptionResult": "measures.corruption",
    "Curve": "measures.curves",
    "EncoderClassifier": "probes.classifier",
    "ProbeResult": "probes.linear",
    "autoattack": "measures.auto_attack",
    "clean_accuracy": "measures.robustness",
    "corruption_accuracy": "measures.corruption",
    "finetune": "probes.finetuning",
    "linear_probe": "probes.linear",
    "measure_classifier": "probes.linear",
    "noise_curve": "measures.curves",
    "path_curve": "measures.curves",
    "probe": "probes.linear",
    "probe_learner": "probes.final",
    "radius_curve": "measures.curves",
    "require_measurable": "probes.final",
    "robust_accuracy": "measures.robustness",
    "semi_supervised": "probes.semi_supervision",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
