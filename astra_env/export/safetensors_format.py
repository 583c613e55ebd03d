"""Exports as ``model.safetensors`` under torchvision's and timm's names, with JSON metadata inside and beside it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from astra_env.errors import CheckpointError, InputError
from astra_env.export.fold import PlainEncoder, statistics_of
from astra_env.export.metadata import ExportMetadata
from astra_env.models import load_official
from astra_env.models.preact_resnet import PreActResNet, preact_resnet18
from astra_env.models.resnet import BasicBlock, Bottleneck, ResNet, ResNetTrunk
from astra_env.models.wide_resnet import WideResNet, wide_resnet_channels
from astra_env.storage.checkpoint import write_atomically
from astra_env.storage.foreign import what_it_is

WEIGHTS_FILE = "model.safetensors"
METADATA_FILE = "model.json"
KEY = "astra_env"
_TO_TORCHVISION = (("shortcut.", "downsample."), ("linear.", "fc."))


def write_export(network: nn.Module, folder: str | Path, *, branch: str | None = None, source: str = "") -> Path:
    """Write a plain network as ``model.safetensors`` and ``model.json``; returns the former's path.

    Args:
        network: a plain encoder or classifier; of a target network fold a branch first.
        folder: created when absent.
        branch: the branch that was folded, for the record.
        source: SHA-256 of the weights it comes from, for the record.

    Raises:
        InputError: for a network that has no plain form, or when safetensors is not installed.
    """
    library = _safetensors()
    metadata = describe(network, branch, source)
    state = torchvision_state(network) if metadata.names == "torchvision" else _without_normalize(network)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {KEY: json.dumps(json.loads(metadata.to_json())), "format": "pt"}
    write_atomically(folder / WEIGHTS_FILE, library.torch.save(tensors, metadata=header))
    write_atomically(folder / METADATA_FILE, (metadata.to_json() + "\n").encode())
    return folder / WEIGHTS_FILE


def torchvision_state(network: ResNetTrunk | nn.Module) -> dict[str, Tensor]:
    """Return a plain ResNet's weights under torchvision's (and timm's) names, without the input normalisation."""
    renamed = {}
    for name, tensor in _without_normalize(network).items():
        for ours, theirs in _TO_TORCHVISION:
            if name.startswith(ours) or f".{ours}" in name:
                name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], ExportMetadata | None]:
    """Return the tensors of a ``.safetensors`` file, and our metadata when it is one of our exports.

    Raises:
        CheckpointError: for a missing or damaged file.
        InputError: when safetensors is not installed.
    """
    library = _safetensors()
    path = Path(path)
    try:
        with library.safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, library.SafetensorError) as error:
        with suppress(OSError):
            other = what_it_is(path.read_bytes()[:1024])
            if other is not None:
                raise CheckpointError(f"{path}: {other}") from error
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); is it complete?") from error
    return tensors, ExportMetadata.from_json(header[KEY], str(path)) if KEY in header else None


def load_export(path: str | Path) -> nn.Module:
    """Rebuild an exported network in eval mode, normalisation inside: images in [0, 1] -> logits or embeddings.

    ``path``: the folder or its ``model.safetensors``. Raises CheckpointError for a file that is not our export.
    """
    path = Path(path)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    tensors, metadata = read_safetensors(file)
    if metadata is None:
        raise CheckpointError(f"{file}: carries no astra_env metadata; load foreign files with evaluate.py instead")
    return load_official(_build(metadata), tensors).eval()


def load_robustbench(path: str | Path) -> nn.Module:
    """Load an exported classifier as RobustBench expects it: [0, 1] images in, normalisation inside, logits out.

    Raises CheckpointError when the export is an encoder without a head.
    """
    network = load_export(path)
    if isinstance(network, PlainEncoder):
        raise CheckpointError(f"{path}: is an encoder without a head; export it with --head (evaluate.py trains one)")
    return network


def describe(network: nn.Module, branch: str | None = None, source: str = "") -> ExportMetadata:
    """Return the metadata of a plain network; raises InputError for a network without a plain form."""
    statistics = statistics_of(network)
    mean, std = statistics if statistics is not None else (None, None)
    head = getattr(network, "linear", None)
    common: dict[str, Any] = {
        "mean": mean if mean is None else tuple(mean),
        "std": std if std is None else tuple(std),
        "branch": branch,
        "source": source,
        "embed_dim": getattr(network, "embed_dim", 0),
        "num_classes": head.out_features if isinstance(head, nn.Linear) else 0,
    }
    if isinstance(network, ResNetTrunk):
        return _describe_resnet(network, common)
    own = "parameter names are astra_env's own: load with astra_env.export.load_export"
    if isinstance(network, PreActResNet):
        variant = "benchmark" if network.bn1 is not None else "standard"
        return ExportMetadata(
            f"preact_resnet18:{variant}", "astra_env", "cifar", network.conv1.out_channels, (2, 2, 2, 2), comment=own,
            **common,
        )  # fmt: skip
    if isinstance(network, WideResNet):
        count = len(network.block1.layer)
        return ExportMetadata(
            "wide_resnet", "astra_env", "cifar", network.embed_dim // 4, (count,) * 3, comment=own, **common
        )
    raise InputError(
        f"export: {type(network).__name__} has no plain form; fold a branch of a target network, or export it as onnx"
    )


def _describe_resnet(network: ResNetTrunk, common: dict[str, Any]) -> ExportMetadata:
    stages = [child for name, child in network.named_children() if name.startswith("layer")]
    blocks = tuple(len(stage) for stage in stages if isinstance(stage, nn.Sequential))
    bottleneck = any(isinstance(module, Bottleneck) for module in network.modules())
    usual = blocks == (2, 2, 2, 2)
    architecture = ("bottleneck_resnet26" if bottleneck else "resnet18") if usual else "resnet"
    width = network.conv1.out_channels
    if usual and width == 64 and not bottleneck:
        comment = "torchvision.models.resnet18 and timm's resnet18 load these names"
        if network.stem == "cifar":
            comment += " after conv1 = Conv2d(3, 64, 3, 1, 1, bias=False) and maxpool = Identity()"
    else:
        comment = "names are torchvision's and timm's, sizes are not: load with astra_env.export.load_export"
    comment += "; inputs in [0, 1] are normalised with mean and std first"
    return ExportMetadata(architecture, "torchvision", network.stem, width, blocks, comment=comment, **common)


def _build(metadata: ExportMetadata) -> nn.Module:
    kind, _, variant = metadata.architecture.partition(":")
    if kind == "preact_resnet18":
        return preact_resnet18(metadata.num_classes, metadata.normalize, metadata.width, variant=variant)
    if kind == "wide_resnet":
        depth = 6 * metadata.blocks[0] + 4
        return wide_resnet_channels(depth, metadata.width, metadata.num_classes, metadata.normalize)
    bottleneck = metadata.embed_dim == 4 * metadata.width * 2 ** (len(metadata.blocks) - 1)
    block = Bottleneck if bottleneck else BasicBlock
    if metadata.num_classes:
        return ResNet(block, metadata.width, metadata.blocks, metadata.num_classes, metadata.stem, metadata.normalize)
    return PlainEncoder(block, metadata.width, metadata.blocks, metadata.stem, "batch", metadata.normalize)


def _without_normalize(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("normalize.")}


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise InputError("safetensors: the package is not installed; install astra-env[export]") from error
    return safetensors
