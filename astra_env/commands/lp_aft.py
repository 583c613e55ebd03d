"""Post-process an encoder by LP-AFT: linear probe and adversarial fine-tuning on its own pseudo-labels."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from astra_env.config.command_line import run_main
from astra_env.config.paths import user_path
from astra_env.config.reading import build_parser, from_dict, parse_command_line
from astra_env.config.schema import DataConfig
from astra_env.errors import ConfigError
from astra_env.evaluation.probes.lp_aft import LPAFTConfig

DESCRIPTION = """Post-process an encoder by LP-AFT (DynACL++, ASTrA++) and write an encoder checkpoint.

Examples:
  lp_aft.py runs/first --out runs/first++
  lp_aft.py model.pt --out runs/tuned --data cifar10 --root data
  evaluate.py runs/first runs/first++ --protocol slf
  lp_aft.py runs/first --out runs/both++ --branches both      for evaluate.py --protocol aff or semi_supervised

--branches adv (default, published for slf and alf) keeps the adversarial route as a network with single norms;
--branches both (published for aff and semi_supervised) keeps both branches. The training is the same.

Labels are not used. The result lies in OUT/checkpoints/last.pt, which evaluate.py and export.py read as any run's.
Interrupted work continues with the same command. Exit status: 0 finished, 2 unusable input (one line says what).
"""


def main() -> int:
    """Run the command and return its exit status."""
    parser = build_parser(LPAFTConfig, description=DESCRIPTION)
    parser.add_argument("checkpoint", type=str, help="Run directory, checkpoint or .safetensors export of an encoder.")
    parser.add_argument("--out", type=str, default=None, help="Run directory to write; required.")
    parser.add_argument("--quiet", action="store_true", help="No progress bars.")
    values = parse_command_line(parser)
    options = {name: values.pop(name) for name in ("checkpoint", "out", "quiet")}
    config = from_dict(LPAFTConfig, values)
    if options["out"] is None:
        raise ConfigError("out: expected a directory for the result; give one with --out DIR")
    path = post_process(config, options["checkpoint"], user_path("out", options["out"]), progress=not options["quiet"])
    print(f"encoder after LP-AFT: {path}")
    return 0


def post_process(config: LPAFTConfig, checkpoint: str, out: Path, *, progress: bool) -> Path:
    """Load, post-process and save; returns the checkpoint's path."""
    import yaml

    from astra_env.compute import resolve_device
    from astra_env.data.training_images import load_training_images
    from astra_env.evaluation.campaign.loading import load_network
    from astra_env.evaluation.probes.lp_aft import lp_aft
    from astra_env.storage.checkpoint import save_checkpoint, write_atomically

    loaded = load_network(checkpoint)
    if loaded.kind != "encoder":
        raise ConfigError(f"checkpoint: {loaded.path} is a classifier; LP-AFT takes an encoder")
    path, device = out / "checkpoints" / "last.pt", resolve_device(config.device)
    if path.exists():
        raise ConfigError(f"out: {path} exists; delete it or choose another --out")
    images = load_training_images(data_of(config, loaded.run, loaded.path), device, progress=progress)
    state = out / "finetuning.pt"
    encoder = lp_aft(loaded.network, images, config, device=device, state_path=state, progress=progress)
    described = {"lp_aft": {**asdict(config), "weights": loaded.digest, "images": len(images)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    if loaded.run:
        write_atomically(out / "config.yaml", yaml.safe_dump(loaded.run, sort_keys=False).encode())
    save_checkpoint(path, {"target": encoder.cpu().state_dict(), **described})
    state.unlink(missing_ok=True)
    return path


def data_of(config: LPAFTConfig, run: dict[str, Any], file: Path) -> DataConfig:
    """Return which images to use: the command line's, else those of the run that the checkpoint lies in."""
    section = run.get("data") or {}
    name = config.data or section.get("name")
    if name is None:
        raise ConfigError(f"data: {file} lies in no run directory, so say which images: --data cifar10")
    if config.data is None and ":" in str(name):
        raise ConfigError(
            f"data: the run of {file} took its images from the code {name!r}, which is imported only when asked for: "
            f"--data {name}"
        )
    own = from_dict(DataConfig, section) if name == section.get("name") else DataConfig(name=str(name))
    given: dict[str, Any] = {"root": config.root, "image_size": config.image_size, "max_images": config.max_images}
    return replace(own, **{key: value for key, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(run_main(main))
