"""Evaluation: linear probes, fine-tuning, attacks, corruptions; nothing here is chosen on the test images."""

from astra_env.evaluation.accuracy import Accuracy
from astra_env.evaluation.auto_attack import AutoAttackResult, autoattack
from astra_env.evaluation.classifier import EncoderClassifier
from astra_env.evaluation.corruption import CorruptionResult, corruption_accuracy
from astra_env.evaluation.curves import Curve, noise_curve, path_curve, radius_curve
from astra_env.evaluation.finetune import finetune
from astra_env.evaluation.linear import ProbeResult, TrainingAttack, linear_probe, probe
from astra_env.evaluation.robustness import clean_accuracy, robust_accuracy

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
    "noise_curve",
    "path_curve",
    "probe",
    "radius_curve",
    "robust_accuracy",
]
