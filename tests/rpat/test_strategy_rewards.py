"""Rewards of an attack on a classifier's training: by hand, and without a trace in the training."""

import pytest
import torch
import torch.nn.functional as F

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError
from astra_env.models import resnet18
from astra_env.rewards import make_reward
from astra_env.storage.checkpoint import encode
from astra_env.strategy import AttackStrategy
from rpat.under_policy.learner import StrategyLearner
from rpat.under_policy.rewards import REWARDS, RewardInputs

ROWS, CLASSES = 6, 3


class Brightness(torch.nn.Module):
    """Logits that grow with the mean of each channel, so that class c shows in channel c."""

    def __init__(self, sharpness):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(float(sharpness)))

    def forward(self, images):
        return self.sharpness * images.mean((2, 3))


def make_inputs(ahead=None, **changes):
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    # Channel means .5, that of the image's class .6: an l-inf attack of .04 cannot close the gap, one of .2 does.
    images = torch.full((ROWS, CLASSES, 4, 4), 0.5)
    images[torch.arange(ROWS), labels] = 0.6
    values = {
        "images": images,
        "labels": labels,
        "clean_logits": torch.randn(ROWS, CLASSES, generator=source),
        "adv_logits": torch.randn(ROWS, CLASSES, generator=source),
        "strategy": AttackStrategy.constant(ROWS, 8 / 255, 4, 2 / 255),
        "look_ahead": lambda: ahead,
        "validation": lambda: (images[:4], labels[:4]),
        "generator": torch.Generator().manual_seed(1),
    }
    return RewardInputs(**{**values, **changes})


def reward(name, **arguments):
    return make_reward(name, arguments, REWARDS)


def losses(inputs, logits):
    return F.cross_entropy(logits, inputs.labels, reduction="none")


def test_adv_loss_gain_is_each_images_own_gain_minus_its_price():
    inputs = make_inputs()
    gain = losses(inputs, inputs.adv_logits) - losses(inputs, inputs.clean_logits)
    assert torch.equal(reward("adv_loss_gain")(inputs), gain)
    assert torch.allclose(reward("adv_loss_gain", cost=0.5)(inputs), gain - 4 * 0.5)
    assert reward("adv_loss_gain", credit="shared")(inputs).item() == pytest.approx(gain.mean().item())


def test_adv_loss_gain_rises_with_what_the_attack_breaks():
    right = F.one_hot(torch.arange(ROWS) % CLASSES, CLASSES).float()
    broken = make_inputs(clean_logits=right, adv_logits=-right)
    assert (reward("adv_loss_gain")(broken) > 0).all()
    assert (reward("adv_loss_gain")(make_inputs(clean_logits=-right, adv_logits=right)) < 0).all()


@pytest.mark.parametrize(
    ("sharpness", "epsilon", "robust", "clean"), [(1, 0.04, 1, 1), (1, 0.2, 0, 1), (-1, 0.2, 0, 0)]
)
def test_look_ahead_adds_what_the_network_would_get_right_after_one_step(sharpness, epsilon, robust, clean):
    inputs = make_inputs(Brightness(sharpness))
    attack = {"epsilon": epsilon, "steps": 5, "step_size": epsilon}
    per_view = reward("look_ahead", credit="per_view", **attack)(inputs)
    assert torch.allclose(per_view, losses(inputs, inputs.adv_logits) + 4.0 * robust + 2.0 * clean)
    shared = reward("look_ahead", robust_weight=10.0, clean_weight=1.0, **attack)(inputs)
    assert shared.shape == ()
    expected = losses(inputs, inputs.adv_logits).mean().item() + 10 * robust + clean
    assert shared.item() == pytest.approx(expected, abs=1e-5)
    assert inputs.terms["reward_robust"].item() == robust
    assert inputs.terms["reward_clean"].item() == clean
    other = reward("look_ahead", images="validation", **attack)(inputs)
    expected = losses(inputs, inputs.adv_logits).mean().item() + 4 * robust + 2 * clean
    assert other.item() == pytest.approx(expected, abs=1e-5)


def test_look_ahead_by_loss_rewards_the_smaller_cross_entropy():
    inputs = make_inputs(Brightness(5))
    attack = {"measure": "loss", "credit": "per_view", "steps": 0, "epsilon": 0.0, "robust_weight": 3.0}
    clean = -losses(inputs, Brightness(5)(inputs.images))
    expected = losses(inputs, inputs.adv_logits) + 3 * clean + 2 * clean
    assert torch.allclose(reward("look_ahead", **attack)(inputs), expected, atol=1e-5)
    worse = make_inputs(Brightness(-5))
    assert (reward("look_ahead", **attack)(worse) < reward("look_ahead", **attack)(inputs)).all()


def released_look_ahead(model, images, labels, source, epsilon, alpha, steps, restarts):
    """Accuracy under the attack of LAS-AT's release, written out: training mode, early stop, the strongest restart."""
    best_loss, best_delta = torch.zeros(len(images)).double(), torch.zeros_like(images)
    model.train()
    for _ in range(restarts):
        delta = (2 * torch.rand(images.shape, generator=source).double() - 1) * epsilon
        delta = ((images + delta).clamp(0, 1) - images).requires_grad_()
        for _ in range(steps):
            logits = model(images + delta)
            right = torch.where(logits.argmax(1) == labels)[0]
            if len(right) == 0:
                break
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), delta)
            moved = (delta[right] + alpha * gradient[right].sign()).clamp(-epsilon, epsilon)
            delta.data[right] = ((images[right] + moved).clamp(0, 1) - images[right]).detach()
        loss = F.cross_entropy(model(images + delta), labels, reduction="none").detach()
        stronger = loss >= best_loss
        best_delta[stronger] = delta.detach()[stronger]
        best_loss = torch.maximum(best_loss, loss)
    model.eval()
    with torch.no_grad():
        return [F.cross_entropy(model(x), labels, reduction="none") for x in (images + best_delta, images)]


@pytest.mark.parametrize("restarts", [1, 2])
def test_look_ahead_in_training_mode_is_the_released_attack(restarts):
    def network():
        return resnet18(CLASSES, width=2, generator=torch.Generator().manual_seed(3)).double().eval()

    source = torch.Generator().manual_seed(0)
    images = torch.rand(ROWS, 3, 8, 8, generator=source, dtype=torch.float64)
    with torch.no_grad():
        likely = network().train()(images).argmax(1)
    labels = torch.where(torch.arange(ROWS) < 4, likely, (likely + 1) % CLASSES)
    inputs = make_inputs(
        network(), images=images, labels=labels, clean_logits=torch.zeros(ROWS, CLASSES).double(),
        adv_logits=torch.zeros(ROWS, CLASSES).double(), generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    attack = {"epsilon": 1 / 32, "steps": 3, "step_size": 1 / 128, "credit": "per_view", "measure": "loss"}
    settings = {**attack, "attack_mode": "train", "restarts": restarts}
    ours = reward("look_ahead", **settings)(inputs)
    again = torch.Generator().manual_seed(1)
    robust, clean = released_look_ahead(network(), images, labels, again, 1 / 32, 1 / 128, 3, restarts)
    expected = losses(inputs, inputs.adv_logits) - 4 * robust - 2 * clean
    assert (ours - expected).abs().max() < 1e-6  # the logits that are scored are float32
    eval_mode = make_inputs(network(), images=images, labels=labels, adv_logits=inputs.adv_logits)
    assert (reward("look_ahead", **attack)(eval_mode) - ours).abs().max() > 1e-3


def test_look_ahead_caps_a_shared_loss_after_its_mean_and_an_images_own_by_itself():
    wrong = torch.zeros(ROWS, CLASSES)
    wrong[0, 1] = 40.0  # the first image loses 40, the others log 3
    inputs = make_inputs(Brightness(1), adv_logits=wrong)
    own = losses(inputs, wrong)
    assert own.max() > 39
    attack = {"robust_weight": 0.0, "clean_weight": 0.0, "steps": 0, "epsilon": 0.0}
    assert reward("look_ahead", **attack)(inputs).item() == pytest.approx(own.mean().item())
    assert torch.equal(reward("look_ahead", credit="per_view", **attack)(inputs), own.clamp(max=10))
    worse = make_inputs(Brightness(1), adv_logits=wrong[:1].expand(ROWS, -1) * 2, labels=torch.zeros(ROWS).long())
    assert reward("look_ahead", **attack)(worse).item() == 10


def test_constant_says_nothing():
    assert reward("constant", value=2.5)(make_inputs()).item() == 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "margin"}, r"reward_args\.measure: expected one of accuracy, loss, got 'margin'"),
        ({"images": "test"}, r"reward_args\.images"),
        ({"attack_mode": "both"}, r"reward_args\.attack_mode: expected one of eval, train, got 'both'"),
        ({"restarts": 2}, r"reward_args\.restarts: expected 1, or more with attack_mode train, got 2"),
        ({"restarts": 0, "attack_mode": "train"}, r"reward_args\.restarts"),
        ({"credit": "each"}, r"reward_args\.credit"),
        ({"credit": "per_view", "images": "validation"}, r"reward_args\.credit: expected 'shared'"),
        ({"alpha": 2}, r"learner\.reward_args: .*alpha"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        reward("look_ahead", **arguments)


def make_learner(name, **overrides):
    kind = {"learner.kind": "rpat.under_policy.learner:StrategyLearner", "learner.reward": name}
    return StrategyLearner(load_config(ExperimentConfig, "supervised_tiny", {**kind, **overrides}))


@pytest.mark.parametrize(
    ("images", "attack"),
    [("minibatch", {}), ("validation", {}), ("minibatch", {"attack_mode": "train", "restarts": 2})],
)
def test_rewards_leave_no_trace_in_the_training(images, attack):
    strategy = AttackStrategy.constant(1, 8 / 255, 1, 4 / 255)
    silent = make_learner("constant")
    watched = make_learner("look_ahead", **{"learner.reward_args": {"images": images, "steps": 2, **attack}})
    for _ in range(2):
        silent.step(strategy)
        assert {"reward_robust", "reward_clean"} <= watched.step(strategy).terms.keys()
    assert encode(silent.state_dict()) == encode(watched.state_dict())


def test_the_copy_that_looks_ahead_is_one_plain_gradient_step_away():
    learner, seen = make_learner("look_ahead", **{"learner.reward_args": {"steps": 0}}), []
    before = [parameter.detach().clone() for parameter in learner.target.parameters()]

    def look_ahead():
        seen.append(StrategyLearner._look_ahead(learner))
        gradients.extend(parameter.grad.clone() for parameter in learner.target.parameters())
        return seen[0]

    gradients = []
    learner._look_ahead = look_ahead
    learner.step(AttackStrategy.constant(1, 8 / 255, 1, 4 / 255))
    for old, gradient, new in zip(before, gradients, seen[0].parameters(), strict=True):
        assert torch.allclose(new, old - 0.05 * (gradient + 5e-4 * old), atol=1e-7)
