"""The vision transformer target: the ResNet's interface, no branches, and a whole run on it."""

import sys

import pytest
import torch

from astra_env.attacks import contrastive_pgd
from astra_env.commands import export
from astra_env.commands import train as train_astra
from astra_env.config.command_line import run_main
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError, InputError
from astra_env.evaluation.campaign.loading import load_network
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.losses import nt_xent
from astra_env.models import target_vit
from astra_env.models.vit import positions
from astra_env.strategy import AttackStrategy

VIT = {"target.backbone": "vit", "target.width": 16, "target.depth": 2, "target.patch_size": 2}


@pytest.fixture
def target():
    return target_vit(
        width=64, depth=2, patch_size=2, feature_dim=8, hidden_dim=16, generator=torch.Generator().manual_seed(0)
    )


def images(count=6, size=8):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_it_maps_views_to_features_and_embeddings_of_any_divisible_size(target):
    for size in (8, 12):
        assert target(images(size=size), branch="adv").shape == (6, 8)
        assert target.embed(images(size=size)).shape == (6, 64)
    with pytest.raises(InputError, match="9 x 9 pixels do not divide into patches of 2"):
        target(images(size=9))
    with pytest.raises(InputError, match="expected 'clean' or 'adv', got 'pgd'"):
        target(images(), branch="pgd")


def test_a_views_features_depend_on_nothing_but_the_view_in_any_mode(target):
    together, alone = target.train()(images()), target.eval()(images()[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(target(images(), branch="clean"), target(images(), branch="adv"))


def test_initial_weights_depend_on_the_generator_alone_and_are_finite(target):
    state = torch.get_rng_state()
    again = target_vit(
        width=64, depth=2, patch_size=2, feature_dim=8, hidden_dim=16, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in target.state_dict().items())
    assert torch.equal(target.last_norm.weight, torch.ones(64))


def test_it_knows_where_a_patch_lies(target):
    grid = positions(16, 4, 4).flatten(1).T
    distances = torch.cdist(grid, grid) + torch.eye(16) * 9
    assert distances.min() > 0.1
    swapped = images().clone()
    swapped[..., :2], swapped[..., 2:4] = images()[..., 2:4], images()[..., :2]
    assert (target(images()) - target(swapped)).abs().max() > 1e-3


def test_the_attack_raises_its_loss(target):
    views, strategy = images(), AttackStrategy.constant(6, 8 / 255, 3, 4 / 255)
    attacked = contrastive_pgd(target, views, strategy, generator=torch.Generator().manual_seed(0))
    assert (attacked - views).abs().max() <= 8 / 255 + 1e-6
    assert nt_xent(target(attacked)) > nt_xent(target(views)) + 0.01


def test_it_learns_the_data():
    mild = {f"views.{kind}_probability": 0.0 for kind in ("jitter", "grayscale", "flip")}
    config = {**VIT, **mild, "views.crop_scale": [0.8, 1.0], "learner.learning_rate": 2.0, "learner.total_steps": 40}
    learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny", config))
    losses = [learner.step(AttackStrategy.constant(1, 4 / 255, 1, 4 / 255)).scalars()["loss"] for _ in range(40)]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2


def test_a_run_on_it_trains_probes_loads_and_exports(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    arguments = [part for name, value in VIT.items() for part in (f"--{name}", str(value))]
    command = ["train_astra.py", "--config", "tiny", "--quiet", "--learner.total_steps", "3", *arguments]
    monkeypatch.setattr(sys, "argv", [*command, "--run_dir", str(run_dir)])
    assert run_main(train_astra.main) == 0
    loaded = load_network(run_dir)
    saved = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)["target"]
    assert loaded.kind == "encoder"
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.network.state_dict().items())
    monkeypatch.setattr(sys, "argv", ["export.py", str(run_dir), "--out", str(tmp_path / "export")])
    assert run_main(export.main) == 2


def test_what_does_not_fit_is_named_before_the_training():
    with pytest.raises(ConfigError, match=r"learner.fold_batchnorm: only target.backbone 'resnet' can be folded"):
        load_config(ExperimentConfig, "tiny", {**VIT, "learner.fold_batchnorm": True})
    with pytest.raises(ConfigError, match=r"learner.fold_batchnorm: needs target.norm branch or single, got 'group'"):
        load_config(ExperimentConfig, "tiny", {"target.norm": "group", "learner.fold_batchnorm": True})
    with pytest.raises(ConfigError, match=r"target.backbone: expected one of resnet, vit"):
        load_config(ExperimentConfig, "tiny", {"target.backbone": "mlp"})
    with pytest.raises(InputError, match="width: expected a multiple of 32"):
        target_vit(width=70)
