"""Two and four processes against one: what is chosen, attacked, rewarded and learnt is the same."""

import pytest
import torch
from worlds import run_task, run_tasks

EXACT = {"rtol": 1e-5, "atol": 1e-9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


TASKS = {
    "steps": {},
    "steps:2": {"learner.accumulate": 2},
    "steps:3": {"learner.accumulate": 3},
    "uneven_attack": {},
    "batch_norm": {},
    "unused_branch": {},
}


@pytest.fixture(scope="module")
def alone(folder):
    return run_tasks(folder, 1, TASKS)[0]


@pytest.fixture(scope="module", params=[2, 4])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def together(folder, size):
    return run_tasks(folder, size, TASKS)


def assert_alike(found, expected, names):
    for name in names:
        for value, wanted in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(value, wanted, **EXACT)


def test_the_same_strategies_are_chosen(alone, together):
    for found in together:
        assert torch.equal(torch.stack(alone["steps"]["chosen"]), torch.stack(found["steps"]["chosen"]))
    assert len(torch.stack(alone["steps"]["chosen"]).unique()) > 3


@pytest.mark.parametrize(
    "name", ["views", "adversarial", "features", "reward", "gradients", "scalars", "weights", "policy"]
)
def test_a_step_is_that_of_one_process(alone, together, name):
    for found in together:
        assert_alike(found["steps"], alone["steps"], [name])
    assert not torch.equal(alone["steps"][name][0], alone["steps"][name][-1])


def test_all_ranks_hold_the_same_weights_and_policy(together):
    for name in ("weights", "policy"):
        for found in together[1:]:
            assert torch.equal(found["steps"][name][-1], together[0]["steps"][name][-1])


@pytest.mark.parametrize("chunks", [2, 3])
def test_chunks_with_cached_features_equal_the_whole_batch(alone, together, chunks):
    """GradCache, with the attack in chunks too; on one process as on several."""
    for found in (alone[f"steps:{chunks}"], together[0][f"steps:{chunks}"]):
        assert torch.equal(torch.stack(alone["steps"]["chosen"]), torch.stack(found["chosen"]))
        assert_alike(found, alone["steps"], ["adversarial", "gradients", "reward", "scalars", "weights", "policy"])


def test_ranks_whose_attacks_are_short_wait_for_the_long_ones(alone, together):
    expected = alone["uneven_attack"]
    for found in together:
        for name in ("adversarial", "reward", "share"):
            torch.testing.assert_close(found["uneven_attack"][name], expected[name], check_dtype=False, **EXACT)


def test_batch_norm_ends_with_the_same_statistics_on_every_rank(alone, together):
    first, *others = (found["batch_norm"] for found in together)
    for other in others:
        assert torch.equal(first["weights"], other["weights"])
    expected = alone["batch_norm"]
    assert not torch.allclose(first["weights"], expected["weights"], rtol=1e-3), "normalised by each rank's own rows"
    torch.testing.assert_close(first["statistics"], expected["statistics"], rtol=0.2, atol=0.1)


def test_a_branch_that_no_rank_uses_is_left_alone(together):
    first, *others = (found["unused_branch"] for found in together)
    assert torch.isfinite(first).all()
    for other in others:
        assert torch.equal(first, other)


def test_a_run_goes_on_with_another_number_of_processes(folder, size):
    straight = run_task(folder, 1, "train", place=folder / f"straight{size}", until=6)[0]
    place = folder / f"changing{size}"
    run_task(folder, 2, "train", place=place, until=3)
    ended = run_task(folder, 1 if size == 2 else 4, "train", place=place, until=6, resume=True)
    assert [line["step"] for line in ended[0]["lines"]] == list(range(6))
    for found in ended:
        assert found["began"] == 3
        torch.testing.assert_close(found["weights"], straight["weights"], **EXACT)
        torch.testing.assert_close(found["policy"], straight["policy"], **EXACT)
    for line, expected in zip(ended[0]["lines"], straight["lines"], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["steps_shares"] == expected["steps_shares"]
