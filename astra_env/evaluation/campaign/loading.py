"""Networks from files: our runs, our exports, official checkpoints, torchvision- and timm-named ResNets.

Sizes are read off the tensors' shapes, so that nothing has to be said twice.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.config.paths import user_path
from astra_env.config.safe_yaml import read_yaml
from astra_env.errors import CheckpointError
from astra_env.evaluation.campaign.own_backbone import own_backbone_network
from astra_env.export.safetensors_format import read_safetensors
from astra_env.models import IMAGENET_MEAN, IMAGENET_STD, load_official, target_resnet18, target_vit
from astra_env.models.interop import weights_of
from astra_env.models.layers import NORMALIZATIONS, ChannelStatistics
from astra_env.models.preact_resnet import preact_resnet18
from astra_env.models.resnet import BasicBlock, Bottleneck, ResNet
from astra_env.models.unwrap import chosen_weights
from astra_env.models.wide_resnet import wide_resnet_channels
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.state import UNFIT, one_line

PLACEHOLDER: ChannelStatistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
WIDE_LAYER = r"block1\.layer\.(\d+)\."
SPARE_VALUES = 10_000_000
"""How many values more than a checkpoint its network may have: projection heads may be absent."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network from a file.

    Attributes:
        name: short name for tables.
        path: the file that was read.
        network: in eval mode, on the CPU.
        kind: "encoder" (needs a head before it classifies) or "classifier".
        branch: the branch to evaluate an encoder with.
        digest: SHA-256 of the weights.
        epoch: how far the training was (epochs or steps), when the file says so.
        run: configuration of the run the file lies in; empty when it lies in none.
    """

    name: str
    path: Path
    network: nn.Module
    kind: str
    branch: str
    digest: str
    epoch: float | None
    run: dict[str, Any]


def load_network(
    path: str | Path, *, weights: str | None = None, normalize: str = "auto", backbone: str | None = None
) -> LoadedNetwork:
    """Load a network from a run directory, a checkpoint or an exported ``.safetensors`` file.

    Args:
        path: a run directory stands for its ``checkpoints/last.pt``.
        weights: key of the weights in a checkpoint that holds several, such as "ema"; by default the momentum encoder
            where the run's objective has one ("target" is the network it follows).
        normalize: normalisation inside the network when the file carries none: "auto" (ImageNet for ASTrA's target
            network, none for others), "none", "imagenet", "cifar10" or "cifar100".
        backbone: the ``module:function`` that a run's encoder was made by, which may then be imported.

    Raises:
        CheckpointError: for a missing or unsafe file, weights of no known network, or weights that are not finite.
    """
    file = resolve(path)
    if normalize != "auto" and normalize not in NORMALIZATIONS:
        raise CheckpointError(f"normalize: expected auto, {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    statistics = NORMALIZATIONS.get(normalize)
    if file.suffix == ".safetensors":
        tensors, metadata = read_safetensors(file)
        checkpoint: dict[str, Any] = dict(tensors)
        if metadata is not None and normalize == "auto":
            statistics = metadata.normalize
    else:
        checkpoint = load_checkpoint(file)
    run, chosen = run_config(file), _choose(checkpoint, weights, file)
    network, encoder = own_backbone_network(chosen, run, file, backbone), True
    if network is None:
        state = weights_of(chosen)
        network = network_for(state, file, normalize=statistics, auto=normalize == "auto")
        encoder = ("conv1.weight" in state or "patch.weight" in state) and not _has_head(state)
    return LoadedNetwork(
        name=_short_name(file),
        path=file,
        network=network.eval(),
        kind="encoder" if encoder else "classifier",
        branch="clean" if (run.get("learner") or {}).get("objective") == "simclr" else "adv",
        digest=digest_of(network),
        epoch=_epoch(checkpoint, file),
        run=run,
    )


def resolve(path: str | Path) -> Path:
    """Return the file that ``path`` stands for; raises CheckpointError when there is none."""
    path = user_path("checkpoint", path)
    candidates = [path / "checkpoints" / "last.pt", path / "model.safetensors"] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"checkpoint: {path} holds no checkpoint; give a run directory, a .pt/.pth checkpoint or an exported "
        ".safetensors file"
    )


def network_for(
    state: Mapping[str, Tensor], file: Path, *, normalize: ChannelStatistics | None = None, auto: bool = True
) -> nn.Module:
    """Build the network whose weights ``state`` holds and load them; raises CheckpointError naming ``file``.

    ``normalize``: (mean, std) or None; statistics in the state come first. ``auto``: use ImageNet's where that is what
    the network's authors do and nothing is given.
    """
    statistics = PLACEHOLDER if "normalize.mean" in state else normalize
    if _is_target(state) and auto and statistics is None:
        statistics = (IMAGENET_MEAN, IMAGENET_STD)
    try:
        with torch.device("meta"):
            sketch = _build(state, file, statistics)
        if _count(sketch.state_dict()) > _count(state) + SPARE_VALUES:
            raise CheckpointError(f"{file}: the shapes of its tensors do not belong to one network; is it complete?")
        network = _build(state, file, statistics)
    except (*UNFIT, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: its tensors fit no known network ({one_line(error)})") from error
    if not _is_target(state):
        return load_official(network, state, allow_missing=() if _has_head(state) else ("linear.",))
    whole = _head(state) is not None
    body = {name: tensor for name, tensor in state.items() if whole or not name.startswith("fc.")}
    return load_official(network, body, allow_missing=("fc.",))


def _is_target(state: Mapping[str, Tensor]) -> bool:
    return _is_transformer(state) or any(".bn_list." in name or name.startswith("bn_list.") for name in state)


def _is_transformer(state: Mapping[str, Tensor]) -> bool:
    return "patch.weight" in state and "last_norm.weight" in state


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _build(state: Mapping[str, Tensor], file: Path, statistics: ChannelStatistics | None) -> nn.Module:
    """Build a network of the sizes that the tensors have."""
    if _is_transformer(state):
        return _transformer(state, statistics)
    if _is_target(state):
        return _target(state, statistics)
    classes = _classes(state)
    if "block1.layer.0.conv1.weight" in state:
        count = _bounded(state, 1 + max(int(m[1]) for name in state if (m := re.match(WIDE_LAYER, name))))
        channels = len(state["block1.layer.0.conv1.weight"])
        return wide_resnet_channels(6 * count + 4, channels, classes, statistics)
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return _resnet(state, classes, statistics)
    raise CheckpointError(
        f"{file}: holds the weights of no known network (first names: {', '.join(sorted(state)[:3])}); known are "
        "ASTrA's target network, ResNet, PreActResNet and WideResNet under their official or torchvision names"
    )


def _target(state: Mapping[str, Tensor], normalize: ChannelStatistics | None) -> nn.Module:
    norm = "branch" if "bn1.bn_list.1.weight" in state else "single"
    if "bn1.bn_list.0.running_mean" not in state:
        norm = "group"
    sizes: dict[str, Any] = {}
    head = _head(state)
    if head is not None:
        last = "fc.fc3.weight" if head == "mlp3" else "fc.fc2.weight"
        sizes = {"head": head, "hidden_dim": len(state["fc.fc1.weight"]), "feature_dim": len(state[last])}
    return target_resnet18(
        width=len(state["conv1.weight"]),
        blocks=_blocks(state),
        stem=_stem(state),
        norm=norm,
        normalize=normalize,
        **sizes,
    )


def _head(state: Mapping[str, Tensor]) -> str | None:
    """Return the form of the projection head that a target network's tensors hold; None for none of ours."""
    if "fc.fc1.weight" not in state:
        return None
    if "fc.fc3.weight" in state:
        return "mlp3"
    if "fc.fc2.bias" not in state:
        return None
    return "mlp2_bn" if "fc.bn1.weight" in state else "mlp2"


def _transformer(state: Mapping[str, Tensor], normalize: ChannelStatistics | None) -> nn.Module:
    found = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))]
    depth = _bounded(state, 1 + max(found, default=0))
    sizes: dict[str, Any] = {}
    if "fc.fc1.weight" in state and "fc.fc3.weight" in state:
        sizes = {"hidden_dim": len(state["fc.fc1.weight"]), "feature_dim": len(state["fc.fc3.weight"])}
    width, _, _, patch_size = state["patch.weight"].shape
    return target_vit(width=width, depth=depth, patch_size=patch_size, normalize=normalize, **sizes)


def _resnet(state: Mapping[str, Tensor], classes: int, statistics: ChannelStatistics | None) -> nn.Module:
    width = len(state["conv1.weight"])
    preactivated = state["layer2.0.bn1.weight"].shape != state["layer2.0.conv1.weight"].shape[:1]
    if preactivated:
        variant = "benchmark" if "bn1.weight" in state else "standard"
        return preact_resnet18(classes, statistics, width, variant=variant)
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    return ResNet(block, width, _blocks(state), classes, _stem(state), statistics)


def _blocks(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for name in state:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stage, block = int(match[1]), int(match[2])
            found[stage] = max(found.get(stage, 0), block + 1)
    return tuple(_bounded(state, found[stage]) for stage in sorted(found))


def _bounded(state: Mapping[str, Tensor], blocks: int) -> int:
    """Return a number of blocks read off names; raises CheckpointError when there are fewer tensors than that."""
    if blocks > len(state):
        raise CheckpointError(f"state_dict: names {blocks} blocks and holds {len(state)} tensors")
    return blocks


def _stem(state: Mapping[str, Tensor]) -> str:
    return "imagenet" if state["conv1.weight"].shape[-1] == 7 else "cifar"


def _has_head(state: Mapping[str, Tensor]) -> bool:
    return "linear.weight" in state or "fc.weight" in state


def _classes(state: Mapping[str, Tensor]) -> int:
    head = state.get("linear.weight", state.get("fc.weight"))
    return 1 if head is None else len(head)


def _choose(checkpoint: Mapping[str, Any], weights: str | None, file: Path) -> Mapping[str, Any]:
    if weights is None:
        objective = checkpoint.get("objective")
        followed = objective.get("momentum_encoder") if isinstance(objective, Mapping) else None
        return followed if isinstance(followed, Mapping) else checkpoint
    chosen = chosen_weights(checkpoint, weights)
    if chosen is None:
        known = ", ".join(sorted(key for key, value in checkpoint.items() if isinstance(value, Mapping)))
        raise CheckpointError(f"{file}: holds no weights called {weights!r}; choose among {known or 'none'}")
    return chosen


def digest_of(network: nn.Module) -> str:
    """Return a SHA-256 over names, shapes and values of a network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short_name(file: Path) -> str:
    if file.parent.name == "checkpoints":
        run = file.parent.parent.name
        return run if file.stem == "last" else f"{run}/{file.stem}"
    return file.parent.name if file.name == "model.safetensors" else file.stem


def _epoch(checkpoint: Mapping[str, Any], file: Path) -> float | None:
    match = re.search(r"(?:step|epoch)_(\d+)$", file.stem)
    if match:
        return float(match[1])
    found = [checkpoint[key] for key in ("epoch", "step") if isinstance(checkpoint.get(key), int | float)]
    return float(found[0]) if found else None


def run_config(file: Path) -> dict[str, Any]:
    """Return the configuration of the run that a checkpoint lies in; empty when it lies in none."""
    path = file.parent.parent / "config.yaml"
    if file.parent.name != "checkpoints" or not path.is_file():
        return {}
    values = read_yaml(path, CheckpointError)
    return values if isinstance(values, dict) else {}
