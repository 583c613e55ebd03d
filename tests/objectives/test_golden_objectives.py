"""The self-supervised methods against numbers of their authors' code; in float64, for signs of gradients decide."""

import pytest
import torch
import torch.nn.functional as F
from golden_arrays import GOLDEN, load_golden
from torch import Tensor, nn

from astra_env.attacks import Contrastive, Objective, contrastive_attack
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.losses import interleave, multi_view_nt_xent, nt_xent
from astra_env.objectives import OBJECTIVES, Batch, DeACL, Encoder
from astra_env.objectives.advcl import Away, high_frequencies
from astra_env.objectives.deacl import LeaveTeacher
from astra_env.optim import epochwise_warmup_cosine
from astra_env.strategy import AttackStrategy


class TinyNetwork(nn.Module):
    """The network that the golden attacks were made on: two convolutions, squares, mean and one linear layer."""

    def __init__(self, weights: dict[str, Tensor], prefix: str = "") -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Parameter(weights[f"{prefix}w{k}"].double()) for k in (1, 2, 3))

    def embed(self, views: Tensor, branch: str = "adv") -> Tensor:
        hidden = F.silu(F.conv2d(views - 0.5, self.w1, stride=2, padding=1))
        return F.conv2d(hidden, self.w2, stride=2, padding=1).square().mean((2, 3))

    def project(self, embedding: Tensor, branch: str = "adv") -> Tensor:
        return embedding @ self.w3.T

    def forward(self, views: Tensor, branch: str = "adv") -> Tensor:
        return self.project(self.embed(views, branch), branch)


def golden(name: str) -> dict[str, Tensor]:
    return load_golden(GOLDEN / f"{name}_seed7.npz")


def share_of_equal_pixels(given: Tensor, expected: Tensor) -> float:
    return float(((given - expected).abs() <= 1e-5).double().mean())


@pytest.mark.parametrize(("clip_start", "equal"), [(False, True), (True, False)])
def test_acl_starts_its_attack_outside_the_image_box(clip_start, equal):
    given = golden("acl_attack")
    views, start = given["views"].double(), given["delta0"].double()
    strategy = AttackStrategy.constant(12, 8 / 255, 5, 2 / 255, views.device)
    attack = contrastive_attack(TinyNetwork(given), views, strategy, init=start, clip_start=clip_start)
    assert (share_of_equal_pixels(attack.adversarial, given["adv"]) >= 0.99) is equal


def learner_of(objective: str, **overrides: object) -> ContrastiveLearner:
    settings = {"learner.objective": objective, "learner.batch_size": 8, "data.max_images": 64, **overrides}
    return ContrastiveLearner(load_config(ExperimentConfig, "tiny", settings))


def of_first_views(strategy: AttackStrategy) -> AttackStrategy:
    return learner_of("rocl").objective.budgets(strategy)


def rocl_attack(given: dict[str, Tensor], goal: Objective, clip_start: bool = True) -> Tensor:
    views = interleave(given["t1"], given["t2"]).double()
    start = interleave(given["delta0"], torch.zeros_like(given["delta0"])).double()
    strategy = of_first_views(AttackStrategy.constant(12, 0.0314, 7, 0.007, views.device))
    network = TinyNetwork(given)
    return contrastive_attack(network, views, strategy, init=start, objective=goal, clip_start=clip_start).adversarial


def test_rocl_attacks_the_first_view_with_keys_that_are_constants():
    given, rocl = golden("rocl_attack"), learner_of("rocl").objective
    batch = Batch(torch.zeros(12, 3, 8, 8), torch.arange(6))
    attacked = rocl_attack(given, rocl.attack_goal(batch), rocl.clip_start)
    assert share_of_equal_pixels(attacked[0::2], given["adv"]) >= 0.99
    assert torch.equal(attacked[1::2], given["t2"].double())
    assert share_of_equal_pixels(rocl_attack(given, Contrastive(0.5))[0::2], given["adv"]) < 0.99
    assert share_of_equal_pixels(rocl_attack(given, rocl.attack_goal(batch), False)[0::2], given["adv"]) < 0.99


def test_rocls_regulariser_is_a_256th_of_the_attacked_pairs_nt_xent():
    given = golden("rocl_attack")
    features = TinyNetwork(given)(interleave(given["adv"], given["t2"]).double())
    assert nt_xent(features).item() / 256 == pytest.approx(given["reg"].item(), rel=1e-4)


class Table(Encoder):
    """An encoder of images that are numbers of rows: their features come from a table, with gradient."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.autocast = None

    def __call__(self, views: Tensor, branch: str) -> Tensor:
        return self.rows[views.flatten(1)[:, 0].long()]

    embed = __call__


def numbered(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_rocls_losses_and_their_gradients_hold_the_keys_constant():
    given = golden("rocl_losses")
    rows = torch.cat([given[name] for name in ("t1", "t2", "adv")]).double().requires_grad_()
    clean = interleave(numbered(*range(6)), numbered(*range(6, 12)))
    attacked = interleave(numbered(*range(12, 18)), numbered(*range(6, 12)))
    objective = learner_of("rocl").objective
    losses = objective(Table(rows), Batch(clean, torch.arange(6)), attacked)
    assert losses.terms["contrastive_loss"].item() == pytest.approx(given["loss3"].item(), rel=1e-6)
    assert losses.terms["adv_loss"].item() == pytest.approx(given["loss2"].item(), rel=1e-6)
    (of_three,) = torch.autograd.grad(losses.terms["contrastive_loss"], rows, retain_graph=True)
    (of_pair,) = torch.autograd.grad(losses.terms["adv_loss"], rows, retain_graph=True)
    (of_both,) = torch.autograd.grad(losses.total, rows)
    expected = torch.cat([given[f"g_{name}"] for name in ("t1", "t2", "adv")])
    pair = torch.cat((torch.zeros_like(given["g_t1"]), given["g2_t2"], given["g2_adv"]))
    torch.testing.assert_close(of_three, expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(of_pair, pair, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(of_both, expected + pair / 256, rtol=1e-4, atol=1e-9)


def test_advcls_contrastive_loss_has_its_published_size():
    given = golden("advcl_losses")
    objective = learner_of("advcl", **{"learner.objective_args": {"clusters": [2]}}).objective
    scaled = objective.scale * multi_view_nt_xent(given["features"], 0.5)
    assert scaled.item() == pytest.approx(given["loss"].item(), rel=1e-9)
    torch.testing.assert_close(high_frequencies(given["images"], 8).double(), given["high"], rtol=0, atol=1e-5)


def test_advcls_attack_and_training_both_have_the_published_size():
    given = golden("advcl_losses")
    learner = learner_of("advcl", **{"learner.objective_args": {"clusters": [2], "pseudo_weight": 0.0}})
    objective = learner.objective
    objective.heads = nn.ModuleList([nn.Linear(16, 2, dtype=torch.float64)])
    rows = given["features"].transpose(0, 1).flatten(0, 1)  # of view 0 all six images, then of view 1, ...
    clean = interleave(numbered(*range(6, 12)), numbered(*range(12, 18)))
    attacked = interleave(numbered(*range(6)), numbered(*range(6)))
    objective._high = lambda views: numbered(*range(18, 24))
    loss = objective(Table(rows), Batch(clean, torch.arange(6)), attacked).total
    assert loss.item() == pytest.approx(given["loss"].item(), rel=1e-9)
    goal = Away(given["features"][:, 1:], [torch.zeros(6).long()], [2], 0.5, objective.scale, 0.0)
    outputs = torch.cat((interleave(given["features"][:, 0], given["features"][:, 1]), torch.zeros(12, 2)), dim=1)
    assert goal(outputs).item() == pytest.approx(given["loss"].item(), rel=1e-9)


def test_deacl_starts_its_attack_outside_the_image_box_and_leaves_the_teacher():
    given = golden("deacl_attack")
    student, teacher = TinyNetwork(given, "student_"), TinyNetwork(given, "teacher_")
    images, start = given["images"].double(), given["delta0"].double()
    strategy = AttackStrategy.constant(12, 8 / 255, 5, 2 / 255, images.device)

    def attack(clip_start: bool) -> Tensor:
        goal = LeaveTeacher(teacher.embed(images).detach())
        return contrastive_attack(
            student, images, strategy, init=start, objective=goal, forward=student.embed, clip_start=clip_start
        ).adversarial

    assert share_of_equal_pixels(attack(DeACL.clip_start), given["adv"]) >= 0.99
    assert share_of_equal_pixels(attack(True), given["adv"]) < 0.99


def test_deacls_loss_is_the_published_one():
    given = golden("deacl_attack")
    student, teacher = TinyNetwork(given, "student_"), TinyNetwork(given, "teacher_")
    objective = learner_of("deacl", **{"learner.objective_args": {"teacher_steps": 1}}).objective
    objective.teacher.embed = lambda views, branch: teacher.embed(views)
    encode = Encoder(student)
    loss = objective(encode, Batch(given["images"].double(), torch.arange(6)), given["adv"].double()).total
    assert loss.item() == pytest.approx(given["loss"].item(), rel=1e-4)


@pytest.mark.parametrize("objective", ["acl", "dynacl", "deacl", "advcl"])
def test_methods_that_start_outside_the_image_box_say_so(objective):
    assert OBJECTIVES.get(objective).clip_start is False


@pytest.mark.parametrize("objective", ["astra", "rocl", "barlow"])
def test_the_other_methods_clip_their_start(objective):
    assert OBJECTIVES.get(objective).clip_start is True


def test_dynacl_follows_the_published_schedule_of_strength_weight_and_learning_rate():
    given = golden("dynacl_schedule")
    learner = learner_of(
        "dynacl",
        **{
            "learner.objective_args": {"epochs": 1000},
            "learner.epochs": 1000,
            "learner.total_steps": None,
            "learner.learning_rate": 5.0,
            "learner.warmup_epochs": 10,
            "learner.schedule": "epoch",
        },
    )
    length = learner.steps_per_epoch
    assert length > 1
    for epoch, strength, weight, rate in zip(
        *(given[name].tolist() for name in ("epoch", "strength", "adv_weight", "learning_rate")), strict=True
    ):
        for position in (0, length - 1):
            learner.step_count = (epoch - 1) * length + position
            assert learner.learning_rate == pytest.approx(rate, rel=1e-6)
            assert learner.objective.epoch(learner.step_count) == epoch
        assert learner.objective.strength(epoch) == pytest.approx(strength)
        assert learner.objective.weight(epoch) == pytest.approx(weight)


def test_dynacls_warm_up_is_a_tenth_an_epoch():
    rates = [epochwise_warmup_cosine(epoch, 1000, 10, 2e-7) for epoch in (0, 1, 8, 9, 10, 999)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.9, 1.0, 1.0])
    assert rates[5] == pytest.approx(2.5e-6, rel=0.1)


def test_dynacls_momentum_encoder_moves_before_the_trained_network_does():
    arguments = {"momentum": 0.9, "momentum_warmup": False}
    learner = learner_of("dynacl", **{"learner.objective_args": arguments})
    learner.step(AttackStrategy.constant(1, 8 / 255, 1, 4 / 255))
    followed = learner.objective.momentum_encoder.conv1.weight.clone()
    trained = learner.target.conv1.weight.detach().clone()
    assert not torch.equal(followed, trained)
    learner.step(AttackStrategy.constant(1, 8 / 255, 1, 4 / 255))
    assert not torch.equal(learner.target.conv1.weight, trained)
    torch.testing.assert_close(learner.objective.momentum_encoder.conv1.weight, 0.9 * followed + 0.1 * trained)


def test_dynacls_attack_sends_second_views_through_the_momentum_encoder():
    learner = learner_of("dynacl", **{"learner.objective_args": {"momentum": 0.5, "momentum_warmup": False}})
    for _ in range(3):
        learner.step(AttackStrategy.constant(1, 8 / 255, 1, 4 / 255))
    views = learner.batch().views
    target, momentum = learner.target.eval(), learner.objective.momentum_encoder.eval()
    with torch.no_grad():
        expected = interleave(target(views[0::2], branch="adv"), momentum(views[1::2], branch="adv"))
        torch.testing.assert_close(learner.objective.outputs(views, "adv"), expected)
        assert not torch.allclose(target(views[1::2], branch="adv"), expected[1::2], atol=1e-3)
