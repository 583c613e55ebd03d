"""Three training steps of the official ASTrA loop, reproduced by the learner from its configuration to its weights."""

from typing import Any

import pytest
import torch
from random_weights import fill_by_init_rule
from torch import Tensor

from astra_env.attacks.norms import Linf
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact

# The published preset; 120 images in batches of 4 make one epoch of warm-up the 30 steps of the golden file.
SETTINGS = {
    "data.name": "digits",
    "data.image_size": 32,
    "data.max_images": 120,
    "learner.batch_size": 4,
    "learner.total_steps": 300,
    "learner.warmup_epochs": 1,
    "device": "cpu",
}
STEPS = 3


class GivenViews(ContrastiveLearner):
    """The learner in float64, with the golden file's initial weights; its augmentation gives the file's views."""

    def __init__(self, config: ExperimentConfig, views: Tensor) -> None:
        super().__init__(config)
        fill_by_init_rule(self.target.double())
        self.target.normalize.reset_parameters()
        self.given = views

    def _augmentation(self, step: int) -> Any:
        return lambda images, *_, **__: self.given[step].flatten(0, 1).double() / 255


class GivenActions:
    """A policy that reads its choices from the golden file."""

    accepts_tensors = True

    def __init__(self, actions: Tensor) -> None:
        self.actions = iter(actions)

    def predict(self, observation: Tensor) -> tuple[Tensor, None]:
        return next(self.actions), None


@pytest.fixture(scope="module")
def golden(golden_three_steps):
    return golden_three_steps


@pytest.fixture(scope="module")
def trained(golden) -> list[dict[str, Any]]:
    """What is seen of each step; the steps are taken once for all tests of this file."""
    learner = GivenViews(load_config(ExperimentConfig, "cifar10", SETTINGS), golden["views"])
    policy, start = GivenActions(golden["actions"]), snapshot(learner)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        # The starts of the attacks are an input too: they stand in for the random draw.
        patch.setattr(Linf, "uniform", lambda ball, views, *_: golden["delta0"][learner.step_count].to(views))
        for _ in range(STEPS):
            observed = learner.observation()
            report = interact(learner, policy)
            seen.append({"start": start, "observed": observed, "report": report, "tensors": snapshot(learner)})
    return seen


def snapshot(learner):
    return {name: tensor.clone() for name, tensor in learner.target.state_dict().items()}


def assert_close(actual, expected):
    torch.testing.assert_close(torch.as_tensor(actual, dtype=torch.float64), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
def test_policy_sees_the_official_views(golden, trained):
    for step, seen in enumerate(trained):
        assert torch.equal(seen["observed"], golden["views"][step].flatten(0, 1))


@pytest.mark.slow
def test_learning_rate_is_the_official_one(golden, trained):
    assert_close([seen["report"].learning_rate for seen in trained], golden["learning_rate_used"])


@pytest.mark.slow
def test_losses_of_three_steps_equal_the_official_ones(golden, trained):
    for step, seen in enumerate(trained):
        terms = [seen["report"].terms[name] for name in ("clean_loss", "adv_loss", "mixed_loss")]
        assert_close(torch.stack(terms), golden["losses_clean_adv_mixed"][step])


@pytest.mark.slow
def test_adversarial_views_of_three_steps_equal_the_official_ones_in_size_and_sum(golden, trained):
    for step, seen in enumerate(trained):
        views, adversarial = seen["report"].views, seen["report"].adversarial
        assert_close((adversarial - views).abs().mean(), golden["adv_mean_abs_delta"][step])
        assert_close(adversarial.sum(), golden["adv_sum"][step])


@pytest.mark.slow
def test_every_tensor_is_as_long_and_has_moved_as_far_as_the_official_one_after_each_step(golden, trained):
    names = golden["names"]
    for step, seen in enumerate(trained, start=1):
        now, start = seen["tensors"], seen["start"]
        assert set(names) == {name for name in now if not name.startswith("normalize.") and "num_batches" not in name}
        assert_close(torch.stack([now[name].norm() for name in names]), golden[f"norm_{step}"])
        assert_close(torch.stack([(now[name] - start[name]).norm() for name in names]), golden[f"change_norm_{step}"])


@pytest.mark.slow
def test_tensors_after_three_steps_equal_the_official_ones(golden, trained):
    finals = {name.removeprefix("final_"): value for name, value in golden.items() if name.startswith("final_")}
    assert finals
    for name, expected in finals.items():
        error = (trained[-1]["tensors"][name] - expected).norm()
        assert error <= 1e-6 * expected.norm(), name


@pytest.mark.slow
def test_biases_of_all_norms_move(trained):
    after, start = trained[-1]["tensors"], trained[-1]["start"]
    biases = [name for name in start if "bn_list" in name and name.endswith("bias")]
    assert len(biases) == 46
    assert all(start[name].abs().max() == 0 and after[name].abs().max() > 0 for name in biases)
