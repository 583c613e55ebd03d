"""What scripts/compare.py compares: methods, ways of choosing the attack, and ablations, by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from astra_env.config.reading import load_config, to_dict
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError
from astra_env.strategy import StrategySpace, parse_number

FIXED = {"policy": "fixed", "policy_args": {"epsilon": "8/255", "steps": 5, "step_size": "2/255"}}
ROCL_FIXED = {
    "policy": "fixed",
    "policy_args": {"epsilon": "8/255", "steps": 7, "step_size": 0.007},
    "strategy.step_size": ["1/255", 0.007, "2/255", "3/255", "4/255", "5/255"],
}
IMPROVED = {"policy": "reinforce", "learner.reward": "per_view"}
PAPER = {"policy": "reinforce", "policy_args": {"preset": "paper"}}


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: a sentence about it and what it sets, by dotted key."""

    sentence: str
    overrides: dict[str, Any] = field(default_factory=dict)


def _fixed(epsilon: str, steps: int, step_size: str) -> dict[str, Any]:
    """Return a fixed attack that pays for no reward."""
    attack = {"epsilon": epsilon, "steps": steps, "step_size": step_size}
    return {"policy": "fixed", "policy_args": attack, "learner.reward": "none"}


ONE_STEP_8 = _fixed("8/255", 1, "10/255")


def _method(objective: str, sentence: str, attack: dict[str, Any] | None = None) -> Variant:
    return Variant(sentence, {"learner.objective": objective, **(FIXED if attack is None else attack)})


VARIANTS = {
    "no_attack": _method("simclr", "clean contrastive training"),
    "acl": _method("acl", "ACL: two streams under 8/255, 5 steps of 2/255"),
    "dynacl": _method("dynacl", "DynACL: the same under a schedule, with a momentum encoder"),
    "rocl": _method("rocl", "RoCL: one view attacked, 8/255, 7 steps of .007", ROCL_FIXED),
    "advcl": _method("advcl", "AdvCL: high-frequency view and pseudo-labels, 8/255, 5 steps of 2/255"),
    "deacl": _method("deacl", "DeACL: a student of a clean teacher, 8/255, 5 steps of 2/255"),
    "barlow": _method("barlow", "Barlow Twins under attack, 8/255, 5 steps of 2/255"),
    "fixed": Variant("ASTrA's loss under 8/255, 5 steps of 2/255: the ablation without a learned strategy", FIXED),
    "fixed_9": Variant(
        "the same with 9 steps, about as many as a random strategy takes",
        {"policy": "fixed", "policy_args": {"epsilon": "8/255", "steps": 9, "step_size": "2/255"}},
    ),
    "random": Variant("every view's attack drawn at random from the grids", {"policy": "random", "policy_args": {}}),
    "paper": Variant("ASTrA as published: REINFORCE on a shared reward", {**PAPER, "learner.reward": "astra"}),
    "constant": Variant(
        "the same with a reward that says nothing: the control", {**PAPER, "learner.reward": "constant"}
    ),
    "learned": Variant("ASTrA improved: per-view credit, baseline, entropy bonus", IMPROVED),
    "cost_aware": Variant("the same, paying for every attack step", {**IMPROVED, "learner.reward": "cost_aware"}),
    "exact": Variant(
        "learned in float32 without any of the inexact savings",
        {**IMPROVED, "learner.precision": "fp32", "learner.channels_last": False, "learner.fast": False},
    ),
    "fast": Variant("learned with learner.fast: what speed does to the result", {**IMPROVED, "learner.fast": True}),
    "no_mixed": Variant("ablation of learned: without the mixed loss", {**IMPROVED, "learner.mixed_weight": 0.0}),
    "single_norm": Variant(
        "ablation of learned: one BatchNorm for both branches", {**IMPROVED, "target.norm": "single"}
    ),
    "clean_steps": Variant("ASTrA's loss on clean views in place of attacked ones", _fixed("8/255", 0, "8/255")),
    "acl_attack": Variant("ASTrA's loss under ACL's attack: 8/255, 5 steps of 2/255", _fixed("8/255", 5, "2/255")),
    "random_attack": Variant(
        "every view's attack drawn at random, no reward paid for",
        {"policy": "random", "policy_args": {}, "learner.reward": "none"},
    ),
    "one_step": Variant("one step of 24/255", _fixed("24/255", 1, "24/255")),
    "one_step_16": Variant("one step of 16/255", _fixed("16/255", 1, "16/255")),
    "one_step_12": Variant("one step of 12/255", _fixed("12/255", 1, "12/255")),
    "one_step_8": Variant("one step of 10/255 in a radius of 8/255, as in fast adversarial training", ONE_STEP_8),
    "three_steps": Variant("24/255, 3 steps of 10/255", _fixed("24/255", 3, "10/255")),
    "five_steps": Variant("24/255, 5 steps of 6/255", _fixed("24/255", 5, "6/255")),
    "two_steps": Variant("32/255, 2 steps of 20/255", _fixed("32/255", 2, "20/255")),
    "acl_astra": _method("acl", "ACL whose attacks are learned", IMPROVED),
    "dynacl_astra": _method("dynacl", "DynACL whose attacks are learned", IMPROVED),
    "rocl_astra": _method("rocl", "RoCL whose attacks are learned", IMPROVED),
    "deacl_astra": _method("deacl", "DeACL whose attacks are learned", IMPROVED),
}

SUITES = {
    "short": ("no_attack", "fixed", "learned"),
    "strategies": ("no_attack", "acl", "dynacl", "random", "paper", "learned", "constant", "cost_aware"),
    "speed": ("exact", "fast"),
    "ablation": ("learned", "no_mixed", "fixed", "single_norm"),
    "budget": (
        "clean_steps",
        "acl_attack",
        "one_step_8",
        "one_step_12",
        "one_step_16",
        "one_step",
        "three_steps",
        "five_steps",
        "two_steps",
        "random_attack",
    ),
    "methods": ("no_attack", "acl", "dynacl", "rocl", "advcl", "deacl", "barlow", "rocl_astra", "dynacl_astra"),
}


def own_variant(text: str) -> tuple[str, Variant]:
    """Read a variant of one's own, ``NAME:KEY=VALUE,KEY=VALUE``; values are read as in YAML.

    Raises ConfigError for another form, or the name of a variant that exists.
    """
    name, _, settings = text.partition(":")
    # A comma inside a value, as in {a: 1, b: 2}, has no KEY= behind it.
    pairs = [part.partition("=") for part in re.split(r",(?=[\w.]+=)", settings)]
    if not name or not all(key and equals for key, equals, _ in pairs):
        raise ConfigError(f"variant: expected NAME:KEY=VALUE[,KEY=VALUE], got {text!r}")
    if name in VARIANTS:
        raise ConfigError(f"variant: {name!r} is a variant already; choose another name")
    return name, Variant("", {key.strip(): yaml.safe_load(value) for key, _, value in pairs})


def variant_overrides(name: str, base: ExperimentConfig, own: Mapping[str, Variant] | None = None) -> dict[str, Any]:
    """Return what a variant sets over ``base``; the published strategy network is made as narrow as the target."""
    overrides = dict({**VARIANTS, **(own or {})}[name].overrides)
    if overrides.get("policy_args", {}).get("preset") == "paper":
        overrides["policy_args"] = {**overrides["policy_args"], "width": base.target.width}
    if overrides.get("policy") == "fixed" and overrides.get("policy_args"):
        overrides |= _grids_with(
            overrides["policy_args"], load_config(ExperimentConfig, to_dict(base), _grids(overrides))
        )
    return overrides


def _grids(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if key.startswith("strategy.")}


def _grids_with(attack: Mapping[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """Return grids that hold a fixed attack, as overrides: what is missing is added to the configured ones."""
    epsilon, steps, size = (parse_number(name, attack[name]) for name in ("epsilon", "steps", "step_size"))
    space, added = StrategySpace.of(config), {}
    wanted = {"epsilon": epsilon, "steps": int(steps), "step_size": size}
    if space.relative:
        wanted["step_size"] = size * max(1, steps) / epsilon
    for name, value in wanted.items():
        grid, given = getattr(space, name), getattr(config.strategy, name)
        if all(abs(value - known) > 1e-6 for known in grid) and not (name == "step_size" and steps == 0):
            added[f"strategy.{name}"] = [*given, value]
    return added
