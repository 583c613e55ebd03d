from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

import agents
from agents import sb3
from agents.sb3.config import AgentConfig, EvaluationConfig
from agents.sb3.run import AgentRun, evaluate
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.envs import InstanceAttackStrategyVectorEnv
from astra_env.errors import ConfigError, InputError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.run_directory import RunDirectory

SHORT = {"learner.total_steps": 3}


def adapter(**arguments: Any) -> sb3.InstanceVecEnv:
    return sb3.InstanceVecEnv(InstanceAttackStrategyVectorEnv(8, "tiny", SHORT, **arguments))


def actions_for(env: VecEnv, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, env.action_space.nvec, (env.num_envs, 3))


def small(**changes: Any) -> AgentConfig:
    defaults = {
        "experiment": "tiny",
        "overrides": SHORT,
        "num_envs": 8,
        "width": 4,
        "blocks": (1, 1),
        "device": "cpu",
        "total_timesteps": 64,
        "hyperparameters": {"n_steps": 2},
        "checkpoint_every": 32,
        "evaluation": EvaluationConfig(seeds=[]),
    }
    return AgentConfig(**{**defaults, **changes})


def parameters(model: Any) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.policy.state_dict().values()])


def test_adapter_steps_as_a_vec_env_should() -> None:
    env = adapter()
    observation = env.reset()
    assert observation.shape == (8, 3, 8, 8)
    assert observation.dtype == np.uint8
    for number in range(3):
        last = observation
        observation, rewards, dones, infos = env.step(actions_for(env))
        assert rewards.dtype == np.float32
        assert dones.tolist() == [number == 2] * 8
        assert [entry["TimeLimit.truncated"] for entry in infos] == [False] * 8
        assert not np.shares_memory(observation, last)
        assert [entry["step"] for entry in infos] == [number + 1] * 8
    assert all(entry["terminal_observation"].shape == (3, 8, 8) for entry in infos)
    assert not np.array_equal(infos[0]["terminal_observation"], observation[0])
    assert env.reset_infos == [{"step": 0}] * 8


def test_adapter_reports_truncation() -> None:
    env = adapter(max_episode_steps=1)
    env.reset()
    _, _, dones, infos = env.step(actions_for(env))
    assert dones.all()
    assert all(entry["TimeLimit.truncated"] for entry in infos)
    assert "terminal_observation" in infos[0]


def test_adapter_infos_are_separate_dictionaries_of_each_view() -> None:
    env = adapter()
    env.reset()
    actions = np.tile([0, 0, 0], (8, 1))
    actions[5] = [2, 2, 1]
    infos = env.step(actions)[3]
    assert [entry["steps"] for entry in infos] == [1, 1, 1, 1, 1, 3, 1, 1]
    infos[0]["mine"] = 1
    assert "mine" not in infos[1]


def test_adapter_passes_seed_and_options_to_the_next_reset_only(tmp_path: Path) -> None:
    env = adapter()
    env.seed(7)
    first = env.reset()
    bare = env.reset()
    env.seed(7)
    assert np.array_equal(env.reset(), first)
    assert not np.array_equal(bare, first)
    env.env.save(tmp_path / "env.pt")
    env.step(actions_for(env))
    env.set_options({"checkpoint": str(tmp_path / "env.pt")})
    env.reset()
    saved = load_checkpoint(tmp_path / "env.pt")["target"]
    assert all(torch.equal(value, saved[name]) for name, value in env.env.learner.target.state_dict().items())
    env.reset()
    assert not all(torch.equal(value, saved[name]) for name, value in env.env.learner.target.state_dict().items())


def test_adapter_attributes_and_methods_reach_the_shared_environment() -> None:
    env = adapter(render_mode="rgb_array")
    env.reset()
    assert env.get_attr("num_envs") == [8] * 8
    assert env.get_attr("num_envs", indices=[0, 3]) == [8, 8]
    env.set_attr("max_episode_steps", 1)
    assert env.step(actions_for(env))[2].all()
    assert env.env_method("observation", indices=2)[0].shape == (8, 3, 8, 8)
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 8
    assert env.render().shape == (520, 960, 3)
    with pytest.raises(AttributeError):
        env.get_attr("nothing")


def test_adapter_refuses_next_step_autoreset() -> None:
    with pytest.raises(ConfigError, match="same_step"):
        adapter(autoreset_mode="next_step")


@pytest.mark.parametrize(
    ("env", "algo", "arguments"),
    [
        ("instance", "ppo", {"n_steps": 2}),
        ("instance", "a2c", {"n_steps": 2}),
        ("instance", "trpo", {"n_steps": 2}),
        ("instance", "recurrent_ppo", {"n_steps": 2, "policy_kwargs": {"lstm_hidden_size": 8}}),
        ("attack_strategy", "ppo", {"n_steps": 4}),
        ("attack_strategy", "dqn", {"learning_starts": 4, "batch_size": 4}),
        ("attack_strategy", "sac", {"learning_starts": 4, "batch_size": 4}),
    ],
)
def test_algorithms_learn_in_the_environments(env: str, algo: str, arguments: dict[str, Any]) -> None:
    config = small(env=env, algo=algo, hyperparameters=arguments, num_envs=8 if env == "instance" else 1)
    model = sb3.make_model(algo, sb3.make_vec_env(config), config)
    before = parameters(model).clone()
    model.learn(16)
    after = parameters(model)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_instance_defaults_treat_a_view_as_a_bandit_with_small_rollouts() -> None:
    config = small(hyperparameters={})
    model = sb3.make_model("ppo", sb3.make_vec_env(config), config)
    assert model.gamma == 0
    assert model.n_steps * model.n_envs % model.batch_size == 0
    assert model.rollout_buffer.observations.dtype == np.uint8
    assert isinstance(model.policy.features_extractor, sb3.ResNetExtractor)


@pytest.mark.parametrize("side", [8, 16, 32, 96])
def test_feature_extractor_takes_views_of_any_size(side: int) -> None:
    space = gym.spaces.Box(0, 255, (3, side, side), np.uint8)
    extractor = sb3.ResNetExtractor(space, width=4, blocks=(1, 1, 1))
    assert extractor(torch.rand(2, 3, side, side)).shape == (2, extractor.features_dim) == (2, 16)


def test_feature_extractor_sees_each_view_alone_in_training_mode() -> None:
    extractor = sb3.ResNetExtractor(gym.spaces.Box(0, 255, (3, 8, 8), np.uint8), width=4, blocks=(1, 1)).train()
    views = torch.rand(4, 3, 8, 8)
    assert torch.allclose(extractor(views)[:1], extractor(views[:1]), atol=1e-6)


def test_an_algorithm_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = sb3.Algorithm("stable_baselines3:A2C", {"n_steps": 7}, actions="box")
    monkeypatch.setitem(sb3.ALGORITHMS._entries, "mine", entry)
    with pytest.raises(ConfigError, match="mine cannot choose an attack per view"):
        small(algo="mine").validate()
    config = small(env="attack_strategy", algo="mine", hyperparameters={})
    config.validate()
    model = sb3.make_model("mine", sb3.make_vec_env(config), config)
    assert (type(model).__name__, model.n_steps, model.action_space.shape) == ("A2C", 7, (3,))  # type: ignore[attr-defined]


def test_unfit_algorithms_and_hyperparameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="attack per view"):
        small(algo="dqn").validate()
    with pytest.raises(ConfigError, match=r"algo: expected one of a2c, dqn, ppo, .*got 'alphago'"):
        small(algo="alphago").validate()
    config = small(hyperparameters={"steps": 3})
    with pytest.raises(ConfigError, match=r"hyperparameters: .*steps"):
        sb3.make_model("ppo", sb3.make_vec_env(config), config)
    with pytest.raises(InputError, match=r"nowhere\.zip"):
        sb3.trained("nowhere.zip", trusted=True)


class StopAfter:
    """Asks the run to stop once so many transitions are done, as a signal would."""

    def __init__(self, agent: AgentRun, timesteps: int) -> None:
        self.agent, self.timesteps, self.inner = agent, timesteps, agent._between

    def __call__(self, summary: dict[str, float]) -> bool:
        if self.agent.model.num_timesteps >= self.timesteps:
            self.agent._stop.signal_number = 15
        return self.inner(summary)


@pytest.mark.parametrize(
    ("env", "algo", "arguments", "overrides"),
    [
        ("instance", "ppo", {"n_steps": 2}, SHORT),
        ("attack_strategy", "dqn", {"learning_starts": 8, "batch_size": 4}, {**SHORT, "env.chunk_steps": 1}),
    ],
)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    env: str, algo: str, arguments: dict[str, Any], overrides: dict[str, Any], tmp_path: Path
) -> None:
    steps = {"instance": 160, "attack_strategy": 32}[env]
    config = small(
        env=env,
        algo=algo,
        hyperparameters=arguments,
        overrides=overrides,
        num_envs=8 if env == "instance" else 1,
        total_timesteps=steps,
        checkpoint_every=10**6,
    )
    with RunDirectory(tmp_path / "straight", "a: 1\n") as run:
        straight = AgentRun(config, run)
        assert straight.train() == 0
        lines = run.metrics()
    with RunDirectory(tmp_path / "stopped", "a: 1\n") as run:
        stopped = AgentRun(config, run)
        stopped._between = StopAfter(stopped, steps // 2)  # type: ignore[method-assign]
        assert stopped.train() == 128 + 15
    torch.rand(3)  # other work of the process in between
    with RunDirectory(tmp_path / "stopped", "a: 1\n", resume=True) as run:
        resumed = AgentRun(config, run)
        resumed.restore()
        assert steps // 2 <= resumed.model.num_timesteps < steps
        assert resumed.train() == 0
        again = run.metrics()
    assert resumed.model.num_timesteps == straight.model.num_timesteps
    assert torch.equal(parameters(resumed.model), parameters(straight.model))
    assert [line["reward"] for line in again] == [line["reward"] for line in lines]


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "a: 1\n") as run:
        AgentRun(small(), run).train()
        with pytest.raises(InputError, match="ppo"):
            AgentRun(small(algo="a2c"), run).restore()


def test_a_trained_agent_is_a_policy_for_the_training_script(tmp_path: Path) -> None:
    config = small()
    model = sb3.make_model("ppo", sb3.make_vec_env(config), config)
    model.learn(16)
    model.save(tmp_path / "model.zip")
    policy = agents.make("agents.sb3:trained", path=str(tmp_path / "model.zip"), trusted=True)
    learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny"))
    report = interact(learner, policy)
    assert learner.step_count == 1
    assert len(report.strategy) == learner.views_per_step


@pytest.mark.parametrize(("env", "algo"), [("instance", "ppo"), ("attack_strategy", "dqn")])
def test_agent_and_baselines_are_evaluated_on_equal_budgets(env: str, algo: str) -> None:
    fixed = {"epsilon": "16/255", "steps": 3, "step_size": "4/255"}
    hyperparameters = {"n_steps": 2} if algo == "ppo" else {}
    config = small(
        env=env,
        algo=algo,
        hyperparameters=hyperparameters,
        num_envs=8 if env == "instance" else 1,
        evaluation=EvaluationConfig(seeds=[1, 2], fixed_args=fixed),
    )
    model = sb3.make_model(algo, sb3.make_vec_env(config), config)
    rewards = evaluate(config, model)
    assert set(rewards) == {"agent", "fixed", "random"}
    assert all(len(values) == 2 and np.isfinite(values).all() for values in rewards.values())
    assert np.mean(rewards["fixed"]) > np.mean(rewards["random"])  # the strongest attack of the grid


@pytest.mark.parametrize(("env", "num_envs"), [("instance", 7), ("attack_strategy", 1)])
def test_ppo_learns_to_attack_a_classifier(env: str, num_envs: int) -> None:
    overrides = {**SHORT, "learner.kind": "rpat.under_policy.learner:StrategyLearner"}
    config = small(env=env, experiment="supervised_tiny", overrides=overrides, num_envs=num_envs)
    model = sb3.make_model("ppo", sb3.make_vec_env(config), config)
    before = parameters(model).clone()
    model.learn(4 * num_envs)
    assert torch.isfinite(parameters(model)).all()
    assert not torch.equal(before, parameters(model))
