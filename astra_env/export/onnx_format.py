"""Networks as ONNX files: images in [0, 1] in, logits or embeddings out, any batch size."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from astra_env.attacks import frozen
from astra_env.errors import InputError

INPUT, OUTPUT = "images", "output"


def write_onnx(network: nn.Module, path: str | Path, *, image_size: int = 32) -> Path:
    """Write a network as one ONNX file and return its path; normalisation stays inside, the batch size is free.

    Args:
        network: images float32 (N, 3, image_size, image_size) in [0, 1] -> logits or embeddings; left as it was found.
        path: the file; its folder is created when absent.
        image_size: side of the images the file will take, in pixels.

    Raises:
        InputError: when onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"onnx: {error.name} is not installed; install astra-env[export]") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    sample = torch.zeros(2, 3, image_size, image_size, device=device)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    batch = torch.export.Dim("batch", min=1)
    try:
        with frozen(network), _quiet():
            program = torch.onnx.export(
                network,
                (sample,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
        if program is None:
            raise InputError("onnx: torch exported nothing for this network; export it as safetensors instead")
        program.save(str(part), external_data=False)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes for its own developers off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
