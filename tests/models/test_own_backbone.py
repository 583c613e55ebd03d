"""Encoders of the user's own and of timm as target networks: built by name, trained, resumed, evaluated."""

import sys
import types

import pytest
import torch
import yaml
from torch import nn

from astra_env.attacks import frozen
from astra_env.config.reading import load_config, to_yaml
from astra_env.config.schema import ExperimentConfig, TargetConfig
from astra_env.errors import AstraError, ConfigError, InputError
from astra_env.evaluation.campaign.loading import load_network
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.models import NETWORKS
from astra_env.models.build import build_target
from astra_env.storage.checkpoint import save_checkpoint
from astra_env.strategy import AttackStrategy

CPU = torch.device("cpu")
SMALL = {"feature_dim": 6, "hidden_dim": 8, "width": 4}


class Mine(nn.Module):
    embed_dim = 5

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.out = nn.Linear(width, 5)

    def forward(self, images):
        return self.out(self.body(images).flatten(1))


@pytest.fixture(autouse=True)
def module(monkeypatch):
    made = types.ModuleType("my_encoders")
    made.mine = Mine
    made.supervised = NETWORKS.get("resnet18")
    made.flat = lambda: nn.Flatten()
    made.three = lambda: 3
    made.needs = lambda secret: nn.Identity()
    made.unpooled = lambda: Unpooled()
    monkeypatch.setitem(sys.modules, "my_encoders", made)
    return made


class Unpooled(nn.Conv2d):
    embed_dim = 5

    def __init__(self):
        super().__init__(3, 5, 1)


def config(backbone, **more):
    return load_config(ExperimentConfig, "tiny", {"target.backbone": backbone, **more})


@pytest.mark.parametrize("backbone", ["my_encoders:mine", "my_encoders:supervised", "timm:resnet18"])
def test_it_trains_attacks_and_resumes_like_ours(backbone):
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    first, second = (ContrastiveLearner(config(backbone)) for _ in range(2))
    weights = first.target.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.target.state_dict().items())
    strategy = AttackStrategy.constant(1, steps=2)
    report = first.step(strategy)
    assert 0 < float((report.adversarial - report.views).abs().max()) <= 8 / 255 + 1e-6
    second.load_state_dict(first.state_dict())
    losses = [float(learner.step(strategy).scalars()["loss"]) for learner in (first, second)]
    assert losses[0] == losses[1]


def test_its_weights_depend_on_the_seed_alone_and_the_global_generator_stays():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    target = build_target(TargetConfig("my_encoders:mine", **SMALL), 3, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (build_target(TargetConfig("my_encoders:mine", **SMALL), seed, CPU) for seed in (3, 4))
    assert torch.equal(target.backbone.out.weight, again.backbone.out.weight)
    assert not torch.equal(target.backbone.out.weight, other.backbone.out.weight)
    assert not any(name.startswith("backbone.linear") for name in target.state_dict())


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("my_encoders:absent", "has no 'absent'"),
        ("no_such_module:x", "cannot import module"),
        ("my_encoders:three", "must return a torch.nn.Module, it returned int"),
        ("my_encoders:flat", "must say how long embeddings are by embed_dim"),
        ("my_encoders:needs", "cannot be called .*secret.*it may take num_classes, normalize, width, generator"),
        ("my_encoders:unpooled", r"must give embeddings \(2, 5\), it gave \(2, 5, \d+, \d+\); pool"),
        ("timm:no_such_model", "timm has no 'no_such_model'"),
        ("timm:vit_tiny_patch16_224", r"cannot take images of \d+ x \d+"),
        ("resnet50", "expected one of resnet, vit, timm:NAME, module:function"),
    ],
)
def test_what_is_no_encoder_is_one_line_before_the_first_step(backbone, message):
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(InputError, match=f"target.backbone: .*{message}") as caught:
        ContrastiveLearner(config(backbone))
    assert "\n" not in str(caught.value)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"target\.backbone: timm is not installed; .*'astra-env\[export\]'"):
        build_target(TargetConfig("timm:resnet18"), 0, CPU)


def test_it_is_rebuilt_for_an_evaluation_only_when_its_code_is_named(tmp_path):
    settings = config("my_encoders:mine")
    learner = ContrastiveLearner(settings)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", learner.state_dict())
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(settings))
    with pytest.raises(ConfigError, match=r"only when asked for: --network\.backbone my_encoders:mine"):
        load_network(tmp_path / "run")
    loaded = load_network(tmp_path / "run", backbone="my_encoders:mine")
    images = torch.rand(2, 3, 16, 16)
    with frozen(learner.target), torch.no_grad():
        assert torch.equal(loaded.network.embed(images, "adv"), learner.target.embed(images, "adv"))
    assert loaded.kind == "encoder"
    section = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert section["target"]["backbone"] == "my_encoders:mine"


def test_folding_it_is_refused():
    with pytest.raises(AstraError, match=r"fold_batchnorm: only target\.backbone 'resnet' can be folded"):
        config("my_encoders:mine", **{"learner.fold_batchnorm": True})
