"""Two and four processes against one: what is chosen, attacked, rewarded and learnt is the same."""

import pytest
import torch

from distributed.worlds import run_task

EXACT = {"rtol": 1e-5, "atol": 1e-9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def alone(folder):
    return run_task(folder, 1, "steps")[0]


@pytest.fixture(scope="module", params=[2, 4])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def together(folder, size):
    return run_task(folder, size, "steps")


def test_the_same_strategies_are_chosen(alone, together):
    for found in together:
        assert all(torch.equal(a, b) for a, b in zip(alone["chosen"], found["chosen"], strict=True))
    assert len(torch.stack(alone["chosen"]).flatten().unique()) > 3


@pytest.mark.parametrize(
    "name", ["views", "adversarial", "features", "reward", "gradients", "scalars", "weights", "policy"]
)
def test_a_step_is_that_of_one_process(alone, together, name):
    for found in together:
        for expected, value in zip(alone[name], found[name], strict=True):
            torch.testing.assert_close(value, expected, **EXACT)
    assert not torch.equal(alone[name][0], alone[name][-1])


def test_all_ranks_hold_the_same_weights_and_policy(together):
    for name in ("weights", "policy"):
        for found in together[1:]:
            assert torch.equal(found[name][-1], together[0][name][-1])


def test_ranks_whose_attacks_are_short_wait_for_the_long_ones(folder, size):
    expected = run_task(folder, 1, "uneven_attack")[0]
    for found in run_task(folder, size, "uneven_attack"):
        torch.testing.assert_close(found["adversarial"], expected["adversarial"], **EXACT)
        torch.testing.assert_close(found["reward"], expected["reward"], **EXACT)
        assert found["share"] == expected["share"]


def test_batch_norm_ends_with_the_same_statistics_on_every_rank(folder, size):
    first, *others = run_task(folder, size, "batch_norm")
    alone = run_task(folder, 1, "batch_norm")[0]
    for other in others:
        assert torch.equal(first["weights"], other["weights"])
    assert not torch.allclose(first["weights"], alone["weights"], rtol=1e-3), "normalised by each rank's own rows"
    torch.testing.assert_close(first["statistics"], alone["statistics"], rtol=0.2, atol=0.1)


def test_a_branch_that_no_rank_uses_is_left_alone(folder, size):
    first, *others = run_task(folder, size, "unused_branch")
    assert torch.isfinite(first).all()
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("chunks", [2, 3])
def test_chunks_with_cached_features_equal_the_whole_batch(folder, alone, size, chunks):
    """GradCache: with the attack in chunks too; also on one process."""
    for found in (run_task(folder, count, "steps", **{"learner.accumulate": chunks})[0] for count in {1, size}):
        assert all(torch.equal(a, b) for a, b in zip(alone["chosen"], found["chosen"], strict=True))
        for name in ("adversarial", "gradients", "reward", "weights"):
            for expected, value in zip(alone[name], found[name], strict=True):
                torch.testing.assert_close(value, expected, **EXACT)


def test_a_run_goes_on_with_another_number_of_processes(folder, size):
    straight = run_task(folder, 1, "train", folder=folder / f"straight{size}", until=6)[0]
    place = folder / f"changing{size}"
    run_task(folder, 2, "train", folder=place, until=3)
    ended = run_task(folder, 1 if size == 2 else 4, "train", folder=place, until=6, resume=True)
    assert [line["step"] for line in ended[0]["lines"]] == list(range(6))
    for found in ended:
        assert found["began"] == 3
        torch.testing.assert_close(found["weights"], straight["weights"], **EXACT)
        torch.testing.assert_close(found["policy"], straight["policy"], **EXACT)
    for line, expected in zip(ended[0]["lines"], straight["lines"], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["steps_shares"] == expected["steps_shares"]
