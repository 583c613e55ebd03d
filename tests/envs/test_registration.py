import json
import subprocess
import sys
import time
import warnings

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import astra_env
from astra_env.errors import InputError
from astra_env.registration import ENVIRONMENTS

SINGLE_IDS = [name for name, entry in ENVIRONMENTS.items() if "vector_entry_point" not in entry]


def test_both_ids_are_registered_by_import() -> None:
    assert set(ENVIRONMENTS) == {"astra_env/AttackStrategy-v0", "astra_env/InstanceAttackStrategy-v0"}
    assert set(ENVIRONMENTS) <= set(gym.registry)


@pytest.mark.parametrize("name", SINGLE_IDS)
def test_checkers_of_gymnasium_and_sb3_pass_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(name, config="tiny").unwrapped
        check_env(env)
        sb3_check_env(env, warn=True)


@pytest.mark.parametrize("name", SINGLE_IDS)
def test_spec_survives_json_and_makes_the_same_environment(name: str) -> None:
    env = gym.make(name, config="tiny", overrides={"env.chunk_steps": 3})
    spec = EnvSpec.from_json(env.spec.to_json())
    assert json.loads(env.spec.to_json())["kwargs"]["overrides"] == {"env.chunk_steps": 3}
    assert spec.make().unwrapped.config == env.unwrapped.config


def test_default_configuration_works_offline() -> None:
    env = gym.make("astra_env/AttackStrategy-v0")
    assert env.action_space.nvec.tolist() == [13, 12, 5]
    assert env.unwrapped.config.data.name == "digits"


def test_gym_make_of_the_vector_id_says_what_to_call_instead() -> None:
    with pytest.raises(InputError, match=r"make_vec\("):
        gym.make("astra_env/InstanceAttackStrategy-v0", config="tiny")


def test_registering_twice_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        astra_env.register_envs()


def test_import_is_quick_and_leaves_heavy_packages_alone() -> None:
    heavy = ("torch", "torchvision", "matplotlib", "stable_baselines3")
    code = f"import sys, astra_env; print([name for name in {heavy} if name in sys.modules])"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - start < 5  # < 0.5 s on an idle machine; generous, because tests share the cores


def test_strategy_classes_are_exported_lazily() -> None:
    from astra_env.strategy import AttackStrategy, StrategySpace

    assert astra_env.AttackStrategy is AttackStrategy
    assert astra_env.StrategySpace is StrategySpace
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = astra_env.Nothing
