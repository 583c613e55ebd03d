"""The contrastive learner: the method's order, exact continuation, and who it leaves alone."""

import copy

import pytest
import torch

import agents
from astra_env.attacks import frozen
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import CheckpointError, ConfigError, DataError, Diverged, InputError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact
from astra_env.losses import mixed_nt_xent, nt_xent
from astra_env.strategy import AttackStrategy


def make_learner(**overrides):
    return ContrastiveLearner(load_config(ExperimentConfig, "tiny", overrides))


def make_policy(learner, name="reinforce", **kwargs):
    if name == "reinforce":
        kwargs = {"width": 4, "blocks": (1, 1), **kwargs}
    context = agents.Context(learner.space, learner.device, 0, learner.total_steps, learner.warmup_steps)
    return agents.make(name, context=context, **kwargs)


def weights(learner):
    return torch.cat([tensor.flatten().double() for tensor in learner.target.state_dict().values()])


def test_views_are_pairs_on_the_8_bit_grid_and_stay_until_the_step():
    learner = make_learner()
    views = learner.views()
    assert views.shape == (32, 3, 8, 8)
    assert torch.equal(views, learner.views())
    observation = learner.observation()
    assert observation.dtype == torch.uint8
    torch.testing.assert_close(observation.float() / 255, views, rtol=0, atol=1e-7)
    learner.step(AttackStrategy.constant(32))
    assert not torch.equal(views, learner.views())


def test_reward_and_losses_are_those_of_the_network_before_and_in_the_step():
    learner = make_learner(**{"learner.reward": "astra", "learner.mixed_weight": 0.25})
    for _ in range(3):
        learner.step(AttackStrategy.constant(1, 8 / 255, 2, 4 / 255))
    before = copy.deepcopy(learner.target)
    report = learner.step(AttackStrategy.constant(1, 8 / 255, 2, 4 / 255))
    with frozen(before), torch.no_grad():
        gain = nt_xent(before(report.adversarial, branch="adv")) - nt_xent(before(report.views, branch="clean"))
    torch.testing.assert_close(report.reward, gain / 3, rtol=1e-3, atol=1e-5)
    before.train()
    clean, adv = before(report.views, branch="clean"), before(report.adversarial, branch="adv")
    total = (nt_xent(clean) + nt_xent(adv)) / 2 + 0.25 * mixed_nt_xent(clean, adv)
    assert report.scalars()["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert not torch.equal(weights(learner), torch.cat([t.flatten().double() for t in before.state_dict().values()]))


def test_adversarial_views_obey_the_strategy():
    learner = make_learner()
    strategy = AttackStrategy.constant(32, 8 / 255, 3, 4 / 255)
    strategy.epsilon[::2] = 2 / 255
    report = learner.step(strategy)
    moved = (report.adversarial - report.views).abs().flatten(1).amax(1)
    assert (moved[::2] <= 2 / 255 + 1e-6).all()
    assert (moved[1::2] <= 8 / 255 + 1e-6).all()
    assert (moved[1::2] > 4 / 255).all()


def test_training_learns_the_data():
    mild = {f"views.{kind}_probability": 0.0 for kind in ("jitter", "grayscale", "flip")}
    wider = {"target.width": 8, "target.feature_dim": 64, "target.hidden_dim": 64, "learner.learning_rate": 5.0}
    learner = make_learner(**{"learner.total_steps": 40, "views.crop_scale": [0.8, 1.0], **mild, **wider})
    losses = [learner.step(AttackStrategy.constant(1, 4 / 255, 1, 4 / 255)).scalars()["loss"] for _ in range(40)]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3


def test_same_seed_same_training_and_another_seed_another():
    runs = []
    for seed in (0, 0, 1):
        learner = make_learner(seed=seed)
        policy = make_policy(learner)
        for _ in range(3):
            interact(learner, policy)
        runs.append(weights(learner))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_global_generator_is_neither_used_nor_disturbed():
    first = make_learner()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    policy = make_policy(first)
    interact(first, policy)
    assert torch.equal(state, torch.get_rng_state())
    second = make_learner()
    torch.manual_seed(2)
    interact(second, make_policy(second))
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("look_ahead", [False, True])
@pytest.mark.parametrize("name", ["reinforce", "random"])
def test_a_restored_learner_continues_bit_for_bit(name, look_ahead):
    learner = make_learner()
    policy = make_policy(learner, name)
    for _ in range(3):
        interact(learner, policy)
    if look_ahead:
        learner.views()
    saved = copy.deepcopy(learner.state_dict()), copy.deepcopy(policy.state_dict())
    expected = [interact(learner, policy).scalars() for _ in range(3)]
    other = make_learner()
    other_policy = make_policy(other, name)
    other.load_state_dict(saved[0])
    other_policy.load_state_dict(saved[1])
    assert [interact(other, other_policy).scalars() for _ in range(3)] == expected
    assert torch.equal(weights(learner), weights(other))


def test_two_learners_in_one_process_do_not_disturb_each_other():
    alone, beside, other = make_learner(), make_learner(), make_learner(seed=9)
    strategy = AttackStrategy.constant(1, steps=1)
    for _ in range(3):
        alone.step(strategy)
    for _ in range(3):
        beside.step(strategy)
        other.step(strategy)
    assert torch.equal(weights(alone), weights(beside))


def test_simclr_attacks_nothing():
    learner = make_learner(**{"learner.objective": "simclr"})
    report = learner.step(AttackStrategy.constant(1))
    assert report.strategy is None
    assert torch.equal(report.views, report.adversarial)
    assert report.scalars()["loss"] == report.scalars()["clean_loss"]


def test_bf16_follows_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        learner = make_learner(**{"learner.precision": precision})
        report = learner.step(AttackStrategy.constant(1, steps=2))
        assert report.adversarial.dtype == torch.float32
        losses[precision] = report.scalars()["loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_versus_fixed_attacks_the_same_views_with_the_fixed_attack():
    learner = make_learner(
        **{
            "learner.reward": "vs_fixed",
            "learner.reward_args": {"epsilon": 16 / 255, "steps": 4, "step_size": 8 / 255, "credit": "shared"},
        }
    )
    for _ in range(4):
        learner.step(AttackStrategy.constant(1, 8 / 255, 2, 4 / 255))
    weak = learner.step(AttackStrategy.constant(1, 1 / 255, 1, 1 / 255)).reward
    assert weak < -0.005


def test_learning_rate_warms_up_and_falls():
    learner = make_learner(**{"learner.warmup_epochs": 0.5, "learner.total_steps": 12})
    rates = []
    while not learner.finished:
        rates.append(learner.step(AttackStrategy.constant(1, steps=1)).learning_rate)
    assert rates[0] == 0
    assert max(rates) == rates[4] == 1.0
    assert rates[-1] < 0.1


def test_divergence_is_a_typed_error_that_names_the_step():
    learner = make_learner()
    with torch.no_grad():
        learner.target.conv1.weight.fill_(float("nan"))
    report = learner.step(AttackStrategy.constant(1, steps=1))
    with pytest.raises(Diverged, match="step 0: loss is nan"):
        report.scalars()


def test_a_checkpoint_of_another_architecture_is_refused_and_changes_nothing():
    learner, wider = make_learner(), make_learner(**{"target.width": 8})
    before = weights(learner)
    with pytest.raises(CheckpointError, match=r"target\.conv1\.weight: expected float32 \(4, 3, 3, 3\)"):
        learner.load_state_dict(wider.state_dict())
    assert torch.equal(before, weights(learner))
    with pytest.raises(CheckpointError, match="does not fit"):
        learner.load_state_dict({"target": learner.target.state_dict()})


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"learner.batch_size": 3}, ConfigError, "learner.batch_size: expected an even integer >= 4, got 3"),
        ({"learner.batch_size": 500}, DataError, "fewer than one batch of 500"),
        ({"learner.objective": "none"}, ConfigError, "learner.objective: expected one of acl, .*astra, .*simclr"),
        ({"strategy.epsilon": []}, ConfigError, "strategy.epsilon: expected a non-empty list"),
        ({"device": "tpu"}, ConfigError, "device: expected auto, cpu"),
        ({"learner.learning_rate": float("nan")}, ConfigError, "learner.learning_rate"),
    ],
)
def test_bad_configurations_are_named(overrides, error, message):
    with pytest.raises(error, match=message):
        make_learner(**overrides)


def test_a_strategy_for_another_number_of_views_is_refused():
    with pytest.raises(InputError, match="one entry per image"):
        make_learner().step(AttackStrategy.constant(3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent_is_named():
    with pytest.raises(ConfigError, match="no CUDA device"):
        make_learner(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_takes_the_steps_of_the_cpu():
    losses = {}
    for device in ("cpu", "cuda"):
        learner = make_learner(device=device)
        losses[device] = [learner.step(AttackStrategy.constant(1, steps=1)).scalars()["clean_loss"] for _ in range(2)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_a_step_reads_the_device_once_for_the_step_counts(monkeypatch):
    """Anything that would wait for a device counts, whichever device the test runs on."""
    learner = make_learner()
    policy = make_policy(learner)
    interact(learner, policy)
    reads = []
    for name in ("item", "cpu", "numpy", "__bool__", "__float__", "__int__", "tolist"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original, _name=name, **kwargs):
            reads.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    views = learner.views()
    reads.clear()
    learner.step(learner.space.decode(policy.predict(learner.observation())[0], check=False))
    assert reads == ["tolist"]
    assert len(views) == 32
