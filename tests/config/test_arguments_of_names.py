"""Arguments of a policy, a reward, ... belong to the name that they were written for."""

import pytest

from astra_env.config.reading import build_parser, load_config, parse_command_line
from astra_env.config.schema import ExperimentConfig
from rpat.config import PRESET_PACKAGE, RPATConfig

TINY = {"preset": "improved", "width": 4}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, TINY),
        ({"policy": "random"}, {}),
        ({"policy": "reinforce"}, TINY),
        ({"policy": "fixed", "policy_args": {"steps": 3}}, {"steps": 3}),
        ({"policy_args.width": 8, "policy": "reinforce"}, {"preset": "improved", "width": 8}),
        ({"policy_args.steps": 3, "policy": "fixed"}, {"steps": 3}),
    ],
)
def test_overrides(overrides, expected):
    assert load_config(ExperimentConfig, "tiny", overrides).policy_args == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], TINY),
        (["--policy", "random"], {}),
        (["--policy=random"], {}),
        (["--policy", "reinforce"], TINY),
        (["--policy", "fixed", "--policy_args.steps", "3"], {"steps": 3}),
        (["--policy_args", "{steps: 3}", "--policy", "fixed"], {"steps": 3}),
        (["--policy_args.width", "8"], {"preset": "improved", "width": 8}),
    ],
)
@pytest.mark.parametrize("config", [["--config", "tiny"], ["--config=tiny"]])
def test_the_command_line(config, words, expected):
    values = parse_command_line(build_parser(ExperimentConfig), [*config, *words])
    assert values["policy_args"] == expected


def test_rewards_and_methods():
    base = {"learner": {"reward": "cost_aware", "reward_args": {"cost": 0.1}}}
    assert load_config(ExperimentConfig, base, {"learner.reward": "per_view"}).learner.reward_args == {}
    assert load_config(ExperimentConfig, base, {"learner": {"reward": "per_view"}}).learner.reward_args == {}
    found = load_config(
        RPATConfig, {"method": "trades", "method_args": {"beta": 3}}, {"method": "mart"}, package=PRESET_PACKAGE
    )
    assert found.method_args == {}
