"""Train the same encoder under several methods and attacks, at equal training steps or equal attack budgets."""

import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_env.commands.compare_report import write_comparison
from astra_env.commands.compare_variants import SUITES, VARIANTS, Variant, own_variant, variant_overrides
from astra_env.commands.train import run_training
from astra_env.compute import cpu_name
from astra_env.config.command_line import run_main
from astra_env.config.paths import user_path
from astra_env.config.reading import build_parser, from_dict, load_config, parse_command_line, to_dict, to_yaml
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError

DESCRIPTION = """Train the same encoder under several methods and ways of choosing the attack; compare linear probes.

Finished runs under --run_dir are not repeated, interrupted ones continue. Writes comparison.json, comparison.md and
comparison.png there. Every row says what the attack cost: gradient steps per view over the whole run.

Suites (--suite NAME) are lists of variants, --variants names them one by one:
{suites}

Variants:
{variants}

--equal_attack_steps gives every attacked variant the budget of attack steps that the random strategy spends in the
configured training: its number of training steps is scaled until what it spent is within {tolerance:.0%}. A fixed
attack of 5 steps then trains longer than one of 9. A variant without an attack trains as long as configured.

--equal_compute gives every variant the same budget of compute, learner.budget, in F per view: forward passes of the
target network on one view. Everything a variant does is charged, its policy's own passes included:
  compare.py --config budget_digits --suite budget --equal_compute --seeds 0 1 2 3 4

--variant NAME:KEY=VALUE[,KEY=VALUE] adds a variant of your own; give it several times for several:
  compare.py --config budget_digits --equal_compute --variants fixed --variant mine:policy=my_module:MyPolicy
"""

TOLERANCE = 0.03
MAX_TRIES = 4
"""Runs per learned variant and seed until its budget fits."""


def main() -> int:
    """Run the command and return its exit status."""
    parser = build_parser(ExperimentConfig, description=description())
    parser.add_argument("--suite", type=str, default=None, help=f"One of {', '.join(SUITES)}.")
    parser.add_argument("--variants", nargs="+", default=None, help="Variants by name; default the suite 'short'.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="One run per variant and seed.")
    parser.add_argument("--equal_attack_steps", action="store_true", help="Equal budgets of attack steps, see above.")
    parser.add_argument("--equal_compute", action="store_true", help="Equal budgets of compute, see above.")
    parser.add_argument("--variant", action="append", default=None, help="A variant of your own, see above.")
    parser.add_argument("--run_dir", type=str, default="runs/comparison", help="Where the runs are written.")
    parser.add_argument("--quiet", action="store_true", help="No progress bars.")
    values = parse_command_line(parser)
    names = ("suite", "variants", "variant", "seeds", "equal_attack_steps", "equal_compute", "run_dir", "quiet")
    options = {name: values.pop(name) for name in names}
    own = dict(own_variant(text) for text in options["variant"] or [])
    variants = chosen_variants(options["suite"], options["variants"], own)
    base = from_dict(ExperimentConfig, values)
    if options["equal_compute"] and base.learner.budget is None:
        raise ConfigError(
            "learner.budget: needed for --equal_compute; give the F per view that every variant may spend, for example "
            "--learner.total_steps null --learner.budget 2000"
        )
    if base.learner.total_steps is None and options["equal_attack_steps"]:
        raise ConfigError("learner.total_steps: needed for --equal_attack_steps; give the length of the training")
    if not base.probe.enabled:
        raise ConfigError("probe.enabled: runs are compared by their measurements; set --probe.enabled true")
    configs = {
        (name, seed): variant_config(base, name, seed, own=own) for seed in options["seeds"] for name in variants
    }
    for config in configs.values():
        require_makeable(config)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for seed in options["seeds"]:
        for name in variants:
            run_dir = user_path("run_dir", options["run_dir"]) / f"{name}-seed{seed}"
            config = configs[name, seed]
            train = trained_to_budget if options["equal_attack_steps"] else finished_summary
            results[name].append(train(config, run_dir, options["quiet"]))
    record = {
        "command": " ".join(["scripts/compare.py", *sys.argv[1:]]),
        "machine": {"cpu": cpu_name(), "system": platform.platform()},
        "versions": next(iter(results.values()))[0]["versions"],
        "seeds": options["seeds"],
        "equal_attack_steps": options["equal_attack_steps"],
        "equal_compute": options["equal_compute"],
        "training_seconds": round(sum(run["timing"]["seconds"] for runs in results.values() for run in runs), 1),
        "config": to_dict(base),
    }
    write_comparison(record, results, user_path("run_dir", options["run_dir"]))
    return 0


def description() -> str:
    """Return the text of ``--help``, variants included."""
    suites = "\n".join(f"  {name:<12} {' '.join(variants)}" for name, variants in SUITES.items())
    variants = "\n".join(f"  {name:<14} {variant.sentence}" for name, variant in VARIANTS.items())
    return DESCRIPTION.format(suites=suites, variants=variants, tolerance=TOLERANCE).replace("%", "%%")


def chosen_variants(suite: str | None, variants: list[str] | None, own: Mapping[str, Variant]) -> list[str]:
    """Return the variants to run, each once; raises ConfigError for unknown names."""
    if suite is not None and suite not in SUITES:
        raise ConfigError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    wanted = [*(SUITES[suite] if suite is not None else []), *(variants or []), *own] or list(SUITES["short"])
    for name in wanted:
        if name not in VARIANTS and name not in own:
            raise ConfigError(f"variants: expected some of {', '.join(VARIANTS)}, got {name!r}")
    return list(dict.fromkeys(wanted))


def variant_config(
    base: ExperimentConfig,
    name: str,
    seed: int,
    total_steps: int | None = None,
    own: Mapping[str, Variant] | None = None,
) -> ExperimentConfig:
    """Return the configuration of one run: the base's, what the variant changes, and the seed."""
    overrides = variant_overrides(name, base, own)
    whole = {key: overrides.pop(key) for key in ("policy_args",) if key in overrides}
    if total_steps is not None:
        overrides["learner.total_steps"] = total_steps
    return load_config(ExperimentConfig, {**to_dict(base), **whole}, {**overrides, "seed": seed})


def require_makeable(config: ExperimentConfig) -> None:
    """Raise ConfigError when a run of the comparison would end before its first step for what its settings name."""
    import agents
    from astra_env.learner.make import learner_class
    from astra_env.strategy import StrategySpace

    learner_class(config.learner.kind)
    grids = config.strategy
    space = StrategySpace(grids.epsilon, grids.steps, grids.step_size)
    agents.make(config.policy, context=agents.Context(space, seed=config.seed), **config.policy_args)


def trained_to_budget(config: ExperimentConfig, run_dir: Path, quiet: bool) -> dict[str, Any]:
    """Return the summary of a run whose attack steps are the budget within TOLERANCE, or the nearest of MAX_TRIES.

    The budget per view is the configured number of training steps times the mean of the steps grid: what a random
    strategy spends. Run directories carry their number of training steps; only the one reported counts.
    """
    configured = config.learner.total_steps
    assert configured is not None
    budget = configured * sum(config.strategy.steps) / len(config.strategy.steps)
    tried: dict[int, dict[str, Any]] = {}
    steps = configured
    while steps not in tried and len(tried) < MAX_TRIES:
        config.learner.total_steps = steps
        summary = finished_summary(config, run_dir.with_name(f"{run_dir.name}-steps{steps}"), quiet)
        spent = attack_steps_per_view(summary)
        if spent == 0:
            return summary
        tried[steps] = summary
        if abs(spent / budget - 1) <= TOLERANCE:
            break
        steps = max(1, round(steps * budget / spent))
    return min(tried.values(), key=lambda summary: abs(attack_steps_per_view(summary) - budget))


def attack_steps_per_view(summary: dict[str, Any]) -> float:
    """Return a run's attack steps, averaged over the views of a minibatch and summed over the training."""
    return float(summary["attack_steps"]) / float(summary["views_per_step"])


def finished_summary(config: ExperimentConfig, run_dir: Path, quiet: bool) -> dict[str, Any]:
    """Return the run's summary, training it or continuing it first where needed.

    Raises:
        ConfigError: when the directory holds a run with other settings.
    """
    summary, settings = run_dir / "summary.json", run_dir / "config.yaml"
    if settings.exists() and to_yaml(load_config(ExperimentConfig, settings)) != to_yaml(config):
        raise ConfigError(f"run_dir: {run_dir} was trained with other settings; delete it or choose another --run_dir")
    if not summary.exists():
        status = run_training(config, run_dir, resume=settings.exists(), quiet=quiet)
        if status:
            sys.exit(status)
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


if __name__ == "__main__":
    sys.exit(run_main(main))
