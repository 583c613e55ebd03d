"""Export a network: plain weights under torchvision's and timm's names, ONNX, and onwards to a folder or the hub."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from astra_env.config.command_line import run_main
from astra_env.config.lists import spread
from astra_env.config.paths import user_path
from astra_env.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from astra_env.evaluation.campaign.loading import LoadedNetwork

FORMATS = ("safetensors", "onnx")
DESCRIPTION = """Export a network to OUT/model.safetensors + OUT/model.json (weights under torchvision's and timm's
names) and, with --format onnx, OUT/model.onnx. Images in [0, 1] go in; normalisation is inside the ONNX file and in
model.json for the weights.

examples:
  export.py runs/first --out exported                       the encoder, adversarial branch
  export.py runs/first --out exported --head evaluation/models/first-slf-*.pt --format safetensors onnx
  export.py model.pt --out exported --push hf:me/robust-resnet18
  export.py --pull hf:me/robust-resnet18 --out here
"""


def expanded(text: str) -> Path:
    """Return a path of the command line, ``~`` expanded."""
    return user_path("out", text)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are ConfigErrors of one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main() -> int:
    """Run the command and return its exit status."""
    parser = _Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="run directory, checkpoint or export")
    parser.add_argument("--out", type=expanded, default=Path("exported"), help="folder to write (default: exported)")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["safetensors"], help="what to write")
    parser.add_argument("--branch", choices=("auto", "adv", "clean"), default="auto", help="branch of a target network")
    parser.add_argument("--head", help="classifier kept by evaluate.py (OUT/models/*.pt), exported with the encoder")
    parser.add_argument("--weights", help="key of the weights in checkpoints that hold several, such as ema")
    parser.add_argument("--backbone", help="code of a run's target.backbone, imported only if named here")
    parser.add_argument("--normalize", default="auto", help="normalisation where the file says nothing: imagenet, ...")
    parser.add_argument("--image_size", type=int, help="side of the ONNX file's images (default: the run's own; 32)")
    parser.add_argument("--push", metavar="DESTINATION", help="also copy the export to a folder or hf:owner/name")
    parser.add_argument("--private", action="store_true", help="make a newly created hub repository private")
    parser.add_argument("--pull", metavar="ORIGIN", help="fetch an export from a folder or hf:owner/name into --out")
    options = parser.parse_args(spread(sys.argv[1:], ("--format",)))
    if (options.checkpoint is None) == (options.pull is None):
        raise ConfigError("checkpoint: give either a network to export or --pull ORIGIN")
    if options.image_size is not None and options.image_size < 8:
        raise ConfigError(f"image_size: expected at least 8 pixels, got {options.image_size}")
    from astra_env.export import pull, push

    if options.pull is not None:
        print(pull(options.pull, options.out))
        return 0
    for path in export(options):
        print(path)
    if options.push is not None:
        print(push(options.out, options.push, private=options.private))
    return 0


def export(options: argparse.Namespace) -> list[Path]:
    """Write every format asked for and return the files."""
    from astra_env.evaluation.campaign.loading import load_network
    from astra_env.export import write_export, write_onnx

    reading = {"weights": options.weights, "normalize": options.normalize, "backbone": options.backbone}
    loaded = load_network(options.checkpoint, **reading)
    branch = loaded.branch if options.branch == "auto" else options.branch
    network, folded = plain_network(loaded, branch, options.head, only_onnx=options.format == ["onnx"])
    side = options.image_size or (image_size_of(loaded.run, loaded.path) if "onnx" in options.format else 0)
    written = []
    if "safetensors" in options.format:
        written.append(write_export(network, options.out, branch=folded, source=loaded.digest))
    if "onnx" in options.format:
        written.append(write_onnx(network, options.out / "model.onnx", image_size=side))
    return written


def image_size_of(run: Mapping[str, Any], file: Path) -> int:
    """Return the side of the images that a run was trained for; 32 for a checkpoint that lies in no run.

    Raises:
        ConfigError: when the run does not say it: a folder's images may have any size.
    """
    data = run.get("data") or {}
    if not data:
        return 32
    from astra_env.data import NATIVE_SIZES

    side = data.get("image_size") or NATIVE_SIZES.get(str(data.get("name")))
    if side is None:
        raise ConfigError(
            f"image_size: the run of {file} does not say the side of its images; give it with --image_size N"
        )
    return int(side)


def plain_network(
    loaded: "LoadedNetwork", branch: str, head: str | None, *, only_onnx: bool
) -> "tuple[nn.Module, str | None]":
    """Return the network to write and the branch that was folded (None where there was nothing to fold)."""
    from astra_env.evaluation.campaign.heads import restored_classifier
    from astra_env.export import BranchEncoder, PlainEncoder, fold_branch, plain_classifier
    from astra_env.models import BackboneTarget, ResNet, TargetNetwork, TransformerTarget

    network = loaded.network
    if head is not None:
        if loaded.kind != "encoder":
            raise CheckpointError(f"{loaded.path}: has a head already; drop --head")
        classifier = restored_classifier(head, loaded)
        network, branch = classifier.encoder, classifier.branch
        if only_onnx:
            return classifier, branch
    if isinstance(network, TransformerTarget | BackboneTarget) and only_onnx:
        return BranchEncoder(network, branch), branch
    if isinstance(network, TargetNetwork):
        if only_onnx and network.norm == "group":
            return BranchEncoder(network, branch), branch
        plain = fold_branch(network, branch)
        return (plain if head is None else plain_classifier(plain, classifier.head)), branch
    if loaded.kind == "encoder" and isinstance(network, ResNet):
        plain = PlainEncoder.of(network)
        return (plain if head is None else plain_classifier(plain, classifier.head)), None
    return network, None


if __name__ == "__main__":
    sys.exit(run_main(main))
