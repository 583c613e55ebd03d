"""Weights that others can load: plain networks, safetensors, ONNX, the Hugging Face hub."""

from astra_env.export.fold import BranchEncoder, PlainEncoder, fold_branch, plain_classifier
from astra_env.export.hub import pull, push
from astra_env.export.metadata import ExportMetadata
from astra_env.export.onnx_format import write_onnx
from astra_env.export.safetensors_format import (
    load_export,
    load_robustbench,
    read_safetensors,
    torchvision_state,
    write_export,
)

__all__ = [
    "BranchEncoder",
    "ExportMetadata",
    "PlainEncoder",
    "fold_branch",
    "load_export",
    "load_robustbench",
    "plain_classifier",
    "pull",
    "push",
    "read_safetensors",
    "torchvision_state",
    "write_export",
    "write_onnx",
]
