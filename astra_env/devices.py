"""Which device a run uses."""

import torch

from astra_env.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``: cpu, cuda, cuda:N or auto (CUDA when there is one).

    Raises:
        ConfigError: for an unknown name, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name} was asked for and PyTorch finds no CUDA device; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name} was asked for, there are {torch.cuda.device_count()} CUDA devices")
    return device
