"""Three updates of the official strategy network, reproduced by the published preset of REINFORCE."""

import pytest
import torch
from random_weights import fill_by_init_rule

import agents
from astra_env.strategy import StrategySpace

UPDATES = 3
WARMUP = 30


@pytest.fixture(scope="module")
def updated(golden_strategy_updates):
    """The policy's tensors before and after each update, made through its protocol in 30 training steps."""
    golden = golden_strategy_updates
    context = agents.Context(StrategySpace(), total_steps=3000, warmup_steps=10 * WARMUP)
    policy = agents.make("reinforce", preset="paper", context=context)
    fill_by_init_rule(policy.network)
    seen = [snapshot(policy)]
    with pytest.MonkeyPatch.context() as patch:
        for update in range(UPDATES):
            views, given = golden["views"][update].flatten(0, 1), golden["actions"][update]
            columns = iter(given.unbind(1))
            # The actions are an input too: they stand in for the random draw.
            patch.setattr(policy, "_sample", lambda logits, columns=columns: next(columns))
            for step in range(1, 11):
                tried = policy.rehearse(views)
                assert (tried is not None) == (step == 10)
                if tried is not None:
                    assert torch.equal(tried, given)
                    policy.learn_from(views, tried, golden["rewards"][update])
                policy.learn_from(views, given, torch.tensor(float("nan")))  # a step's own outcome is not learnt from
            seen.append(snapshot(policy))
    assert policy.updates == UPDATES
    return seen


def snapshot(policy):
    return {name: tensor.clone() for name, tensor in policy.network.state_dict().items()}


def test_every_tensor_is_as_long_and_has_moved_as_far_as_the_official_one(golden_strategy_updates, updated):
    golden, start = golden_strategy_updates, updated[0]
    names = golden["names"]
    assert set(names) == {name for name in start if not name.endswith("num_batches_tracked")}
    for update, now in enumerate(updated[1:], start=1):
        norms = torch.stack([now[name].double().norm() for name in names])
        changes = torch.stack([(now[name].double() - start[name].double()).norm() for name in names])
        torch.testing.assert_close(norms, golden[f"norm_{update}"], rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(changes, golden[f"change_norm_{update}"], rtol=1e-3, atol=1e-9)


def test_tensors_after_three_updates_equal_the_official_ones(golden_strategy_updates, updated):
    finals = [name for name in golden_strategy_updates if name.startswith("final_")]
    assert finals
    for name in finals:
        expected = golden_strategy_updates[name]
        error = (updated[-1][name.removeprefix("final_")] - expected).norm()
        assert error <= 1e-3 * expected.norm(), name


def test_biases_of_all_norms_move_from_the_second_update_on(updated):
    start, first, second = updated[:3]
    biases = [name for name in start if name.endswith("bias") and not name.startswith("Attack")]
    assert len(biases) == 20
    for name in biases:
        assert start[name].abs().max() == 0, name
        assert first[name].abs().max() == 0, name  # the warm-up starts at a learning rate of zero
        assert second[name].abs().max() > 0, name
