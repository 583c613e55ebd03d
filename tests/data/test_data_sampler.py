"""Batches: what an epoch covers, and that a checkpoint continues it exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra_env.data import BatchSampler
from astra_env.errors import CheckpointError, DataError


def test_an_epoch_shows_no_image_twice_and_drops_the_incomplete_batch() -> None:
    sampler = BatchSampler(10, 3, seed=0)
    assert sampler.steps_per_epoch == 3
    for _ in range(4):
        epoch = torch.cat([next(sampler) for _ in range(3)])
        assert epoch.dtype == torch.int64
        assert len(epoch.unique()) == 9
        assert epoch.min() >= 0
        assert epoch.max() < 10


def test_an_incomplete_batch_can_be_kept_and_then_an_epoch_shows_every_image_once() -> None:
    sampler, dropping = BatchSampler(10, 3, seed=0, drop_last=False), BatchSampler(10, 3, seed=0)
    assert sampler.steps_per_epoch == 4
    for _ in range(3):
        batches = [next(sampler) for _ in range(4)]
        assert [len(batch) for batch in batches] == [3, 3, 3, 1]
        assert sorted(torch.cat(batches).tolist()) == list(range(10))
        assert all(torch.equal(batch, next(dropping)) for batch in batches[:3])
    assert BatchSampler(9, 3, seed=0, drop_last=False).steps_per_epoch == 3


@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.integers(-5, 2**40),
    st.integers(0, 30),
    st.booleans(),
)
def test_a_loaded_state_continues_with_the_very_batches_that_were_next(
    sizes: tuple[int, int], seed: int, steps: int, drop_last: bool
) -> None:
    original = BatchSampler(*sizes, seed=seed, drop_last=drop_last)
    for _ in range(steps):
        next(original)
    resumed = BatchSampler(*sizes, seed=seed, drop_last=drop_last)
    resumed.load_state_dict(original.state_dict())
    for _ in range(2 * original.steps_per_epoch + 1):
        assert torch.equal(next(original), next(resumed))
    assert original.state_dict() == resumed.state_dict()


def test_epochs_and_seeds_differ() -> None:
    sampler, other = BatchSampler(100, 100, seed=1), BatchSampler(100, 100, seed=2)
    first = next(sampler)
    assert not torch.equal(first, next(sampler))
    assert not torch.equal(first, next(other))


def test_neighbouring_seeds_do_not_share_epochs() -> None:
    second_epoch = BatchSampler(50, 50, seed=7)
    next(second_epoch)
    assert not torch.equal(next(second_epoch), next(BatchSampler(50, 50, seed=8)))


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    state = torch.get_rng_state()
    next(BatchSampler(20, 5, seed=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_images_than_a_batch_names_both_numbers() -> None:
    with pytest.raises(DataError, match=r"5 images are fewer than one batch of 8; lower --learner\.batch_size"):
        BatchSampler(5, 8, seed=0)
    with pytest.raises(DataError, match="expected at least 1, got 0"):
        BatchSampler(5, 0, seed=0)


@pytest.mark.parametrize("state", [{}, {"epoch": 0, "position": 5}, {"epoch": -1, "position": 0}, {"epoch": "0"}])
def test_a_state_of_another_sampler_is_refused(state: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="another batch size"):
        BatchSampler(8, 2, seed=0).load_state_dict(state)
