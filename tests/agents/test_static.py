"""Fixed, random and scheduled policies, and how policies are made."""

import sys

import numpy as np
import pytest

import agents
from astra_env.errors import ConfigError, InputError
from astra_env.strategy import StrategySpace

IMAGES = np.zeros((500, 3, 8, 8), dtype=np.uint8)
VECTOR = np.zeros(17, dtype=np.float32)


def test_fixed_gives_every_view_the_same_attack():
    actions, _ = agents.make("fixed").predict(IMAGES)
    strategy = StrategySpace().decode(actions)
    assert len(strategy) == 500
    assert set(strategy.steps.tolist()) == {5}
    assert strategy.epsilon.unique().tolist() == pytest.approx([8 / 255])
    assert agents.make("fixed").predict(VECTOR)[0].shape == (3,)
    assert agents.make("fixed").predict(IMAGES[0])[0].shape == (3,)


def test_fixed_takes_fractions_and_refuses_values_off_the_grid():
    policy = agents.make("fixed", epsilon="15/255", steps=9, step_size="3/255")
    assert policy.predict(VECTOR)[0].tolist() == [12, 6, 2]
    with pytest.raises(InputError, match="epsilon: expected a value of the grid"):
        agents.make("fixed", epsilon=0.5)


def test_random_covers_every_grid_evenly():
    actions, _ = agents.make("random", seed=1).predict(IMAGES)
    for column, size in enumerate(StrategySpace().sizes):
        counts = np.bincount(actions[:, column], minlength=size)
        assert len(counts) == size
        assert counts.min() > 0.5 * 500 / size


def test_random_continues_from_its_state():
    policy, other = agents.make("random", seed=1), agents.make("random", seed=2)
    policy.predict(IMAGES)
    other.load_state_dict(policy.state_dict())
    assert np.array_equal(policy.predict(IMAGES)[0], other.predict(IMAGES)[0])


SMALL_GRIDS = StrategySpace(epsilon=[0.1, 0.2, 0.3], steps=[1, 2], step_size=[0.1, 0.2])


@pytest.mark.parametrize("name", ["fixed", "random", "scheduled", "reinforce"])
@pytest.mark.parametrize("counts", [(1,), (3, 1), (5, 2, 3)])
def test_every_policy_continues_after_odd_numbers_of_draws(name, counts):
    """Half of a 64-bit draw may wait for the next 32-bit one; a state that forgets it draws other actions."""
    arguments = {
        "fixed": {"epsilon": 0.2, "steps": 1, "step_size": 0.1},
        "scheduled": {"start": (0.1, 1, 0.1), "end": (0.3, 2, 0.2), "total_steps": 9},
        "reinforce": {"width": 4, "blocks": (1, 1)},
    }.get(name, {})
    context = agents.Context(SMALL_GRIDS, seed=1)
    policy, other = (agents.make(name, context=context, **arguments) for _ in range(2))
    for count in counts:
        policy.predict(np.zeros((count, 3, 8, 8), np.uint8))
    if hasattr(policy, "state_dict"):
        other.load_state_dict(policy.state_dict())
    for count in (3, 2, 1):
        images = np.zeros((count, 3, 8, 8), np.uint8)
        assert np.array_equal(policy.predict(images)[0], other.predict(images)[0])


def test_random_continues_from_a_state_of_version_0_1_0():
    policy = agents.make("random", seed=1)
    old = {key: value for key, value in policy.state_dict().items() if key in ("state", "inc")}
    agents.make("random", seed=2).load_state_dict(old)


def test_scheduled_moves_from_the_first_to_the_last_attack():
    policy = agents.make("scheduled", start=("3/255", 3, "1/255"), end=("15/255", 14, "5/255"), total_steps=5)
    epsilons = [policy.predict(IMAGES)[0][0, 0] for _ in range(7)]
    assert epsilons == [0, 3, 6, 9, 12, 12, 12]
    other = agents.make("scheduled", total_steps=5)
    other.load_state_dict({"calls": 3})
    assert other.calls == 3


def test_a_policy_of_ones_own_is_made_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "my_policy_module.py").write_text(
        "import numpy as np\n"
        "class Strongest:\n"
        "    def __init__(self, space, bonus=0):\n"
        "        self.space, self.bonus = space, bonus\n"
        "    def predict(self, observation, state=None, episode_start=None, deterministic=False):\n"
        "        return np.tile([size - 1 for size in self.space.sizes], (len(observation), 1)), state\n"
        "class Mute:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    policy = agents.make("my_policy_module:Strongest", bonus=2)
    assert policy.bonus == 2
    assert policy.predict(IMAGES)[0][0].tolist() == [12, 11, 4]
    with pytest.raises(ConfigError, match="has no method predict"):
        agents.make("my_policy_module:Mute")
    with pytest.raises(ConfigError, match="has no 'Nobody'"):
        agents.make("my_policy_module:Nobody")
    sys.modules.pop("my_policy_module")


def test_unknown_policies_and_arguments_are_named():
    with pytest.raises(ConfigError, match="policy: expected one of fixed, random, reinforce, scheduled"):
        agents.make("clever")
    with pytest.raises(ConfigError, match=r"policy_args: .*colour"):
        agents.make("fixed", colour="red")
