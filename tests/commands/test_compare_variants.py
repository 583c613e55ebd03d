"""Variants of one's own, and grids that hold the attack a variant names."""

import pytest

from astra_env.commands.compare import chosen_variants, variant_config
from astra_env.commands.compare_variants import SUITES, own_variant
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError
from astra_env.strategy import StrategySpace, parse_number


def test_a_variant_sets_what_it_says_and_commas_inside_values_stay():
    name, variant = own_variant("mine:policy=fixed,policy_args={epsilon: 16/255, steps: 1, step_size: 16/255},seed=3")
    assert name == "mine"
    assert variant.overrides == {
        "policy": "fixed",
        "policy_args": {"epsilon": "16/255", "steps": 1, "step_size": "16/255"},
        "seed": 3,
    }
    base = load_config(ExperimentConfig, "budget_digits")
    config = variant_config(base, name, 0, own={name: variant})
    assert config.policy_args == variant.overrides["policy_args"]
    assert chosen_variants(None, None, {name: variant}) == ["mine"]


@pytest.mark.parametrize("text", ["mine", "mine:", ":policy=fixed", "mine:policy", "mine:=3"])
def test_another_form_is_named(text):
    with pytest.raises(ConfigError, match=r"variant: expected NAME:KEY=VALUE"):
        own_variant(text)


def test_a_name_that_is_taken_is_named():
    with pytest.raises(ConfigError, match="'fixed' is a variant already"):
        own_variant("fixed:policy=random")


@pytest.mark.parametrize("preset", ["tiny", "quickstart", "budget_digits"])
@pytest.mark.parametrize("name", ["fixed", "fixed_9", *SUITES["budget"]])
def test_grids_hold_the_attack_that_a_variant_names(preset, name):
    config = variant_config(load_config(ExperimentConfig, preset), name, 0)
    if config.policy == "fixed":
        attack = config.policy_args
        epsilon, size = (parse_number(key, attack[key]) for key in ("epsilon", "step_size"))
        StrategySpace.of(config).encode(epsilon, attack["steps"], size)
