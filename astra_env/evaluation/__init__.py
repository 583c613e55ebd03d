"""Evaluation: linear probes, fine-tuning, attacks, corruptions; nothing here is chosen on the test images."""

from astra_env.evaluation.accuracy import Accuracy
from astra_env.evaluation.classifier import EncoderClassifier
from astra_env.evaluation.linear import ProbeResult, TrainingAttack, linear_probe, probe
from astra_env.evaluation.robustness import clean_accuracy, robust_accuracy

__all__ = [
    "Accuracy",
    "EncoderClassifier",
    "ProbeResult",
    "TrainingAttack",
    "clean_accuracy",
    "linear_probe",
    "probe",
    "robust_accuracy",
]
