"""Narrow networks stay out of channels-last on a CPU, whoever asks for it, and train right on every processor."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gymnasium.spaces import Box
from torch import nn

import agents
from agents.sb3.model import ResNetExtractor
from astra_env.compute import CHANNEL_BLOCK, memory_order
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig, TargetConfig
from astra_env.data import load_dataset
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.make import make_learner
from astra_env.learner.protocol import interact
from astra_env.models import bottleneck_resnet26, preact_resnet18, resnet18, strategy_resnet18
from astra_env.models.build import build_target
from astra_env.models.folded import Folded
from astra_env.models.wide_resnet import wide_resnet_channels
from rpat import RPATConfig
from rpat.config import PRESET_PACKAGE
from rpat.learner import SupervisedLearner

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
OLDER_PROCESSOR = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
NETWORKS = {
    "resnet18": lambda width: resnet18(width=width, generator=seeded()),
    "bottleneck_resnet26": lambda width: bottleneck_resnet26(width=width, generator=seeded()),
    "preact_resnet18": lambda width: preact_resnet18(width=width, generator=seeded()),
    "wide_resnet": lambda width: wide_resnet_channels(10, width, generator=seeded()),
    "strategy_network": lambda width: strategy_resnet18(width=width, norm="group", generator=seeded()),
    "target_network": lambda width: build_target(
        TargetConfig(width=width, blocks=(1, 1, 1, 1), feature_dim=8, hidden_dim=8), 0, CPU
    ),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def in_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def shortcut(width, stride=2, kernel=1):
    return nn.Sequential(nn.Conv2d(width, 2 * width, kernel, stride=stride, padding=kernel // 2, bias=False))


def wanted(network, images):
    """Put both in the order that channels-last, wanted on a CPU, comes to."""
    order = memory_order(network, CPU, channels_last=True)
    return network.to(memory_format=order), images.contiguous(memory_format=order)


def gradients(network, images, *arguments):
    images = images.detach().requires_grad_()
    outputs = network(images, *arguments)
    outputs = torch.cat(outputs, 1) if isinstance(outputs, tuple) else outputs
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view(outputs.shape).to(outputs.dtype)
    found = torch.autograd.grad((outputs * weights).sum(), [images, *network.parameters()], allow_unused=True)
    return torch.cat([gradient.double().flatten() for gradient in found if gradient is not None])


def error(network, images, *arguments):
    exact = gradients(copy.deepcopy(network).double(), images.double(), *arguments)
    network, images = wanted(network, images)
    # A write past the end of a workspace takes a few passes to show.
    found = [gradients(network, images, *arguments) for _ in range(3)]
    return max(float((one - exact).norm() / exact.norm()) for one in found)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_of_every_width_and_stride_are_those_of_float64(stride, kernel):
    for width in range(1, 17):
        layer = shortcut(width, stride, kernel)
        images = torch.randn(3, width, 8, 8, generator=seeded(width))
        assert error(layer, images) < 1e-5, width


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8, 12, 16])
def test_gradients_of_narrow_networks_are_those_of_float64(name, width):
    network = NETWORKS[name](width).eval()
    images = torch.rand(4, 3, 16, 16, generator=seeded(1))
    arguments = ("adv",) if name == "target_network" else ()
    assert error(network, images, *arguments) < 1e-4


@pytest.mark.parametrize("network", [shortcut(CHANNEL_BLOCK - 1), shortcut(CHANNEL_BLOCK - 1, stride=(1, 2))])
def test_a_narrow_strided_1x1_convolution_keeps_a_network_contiguous_on_a_cpu_only(network):
    assert memory_order(network, CPU, channels_last=True) is torch.contiguous_format
    assert memory_order(network, torch.device("cuda"), channels_last=True) is torch.channels_last


@pytest.mark.parametrize(
    "network", [shortcut(CHANNEL_BLOCK), shortcut(1, stride=1), shortcut(1, kernel=3), resnet18(width=CHANNEL_BLOCK)]
)
def test_every_other_network_has_the_order_it_is_wanted_in(network):
    assert memory_order(network, CPU, channels_last=True) is torch.channels_last
    assert memory_order(network, CPU, channels_last=False) is torch.contiguous_format


@pytest.mark.parametrize(("width", "last"), [(4, False), (CHANNEL_BLOCK, True)])
def test_target_network_its_folded_copy_and_its_views_share_the_order(width, last):
    config = load_config(ExperimentConfig, "tiny", {"learner.channels_last": True, "target.width": width})
    learner = ContrastiveLearner(config, load_dataset("digits", image_size=8))
    copied = Folded(learner.target, branch="adv")
    strided = [learner.target.conv1.weight, *(layer.weight for layer in copied._layers if layer.weight.dim() == 4)]
    assert {in_channels_last(weight) for weight in strided if weight.shape[-1] > 1} == {last}
    assert in_channels_last(learner.views()) == last
    assert learner.observation().is_contiguous()


@pytest.mark.parametrize(("width", "last"), [(4, False), (CHANNEL_BLOCK, True)])
def test_classifier_and_its_images_share_the_order(width, last):
    overrides = {"learner.channels_last": True, "network.width": width}
    config = load_config(RPATConfig, "tiny", overrides, package=PRESET_PACKAGE).resolved()
    learner = SupervisedLearner(config, load_dataset("digits", image_size=8), CPU)
    assert in_channels_last(learner.model.conv1.weight) == last
    assert in_channels_last(learner.draw()[0]) == last


def test_observations_of_a_learner_in_channels_last_are_contiguous():
    overrides = {"learner.channels_last": True, "learner.kind_args.network": {"name": "resnet18", "width": 16}}
    learner = make_learner(load_config(ExperimentConfig, "supervised_tiny", overrides))
    assert in_channels_last(learner.images())
    assert learner.observation().is_contiguous()


def test_narrow_policies_see_contiguous_images_whatever_they_are_given():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    images = images.contiguous(memory_format=torch.channels_last)
    seen = []
    policy = agents.make("reinforce", preset="improved", width=4, blocks=(1, 1))
    extractor = ResNetExtractor(Box(0, 255, (3, 8, 8), "uint8"), width=4, blocks=(1, 1))
    for network in (policy.network, extractor.trunk):
        network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    policy.predict(images)
    extractor(images.float() / 255)
    assert seen == [True, True]


@pytest.mark.parametrize("fast", [False, True])
def test_tiny_runs_train_in_channels_last(fast):
    overrides = {"learner.channels_last": True, "learner.fast": fast}
    for preset in ("tiny", "supervised_tiny"):
        config = load_config(ExperimentConfig, preset, overrides)
        learner = make_learner(config)
        policy = agents.make("reinforce", preset="improved", width=4, blocks=(1, 1), space=learner.space)
        for _ in range(3):
            interact(learner, policy)
    settings = load_config(
        RPATConfig, "tiny", {"learner.channels_last": True, "learner.fast": fast}, package=PRESET_PACKAGE
    ).resolved()
    classifier = SupervisedLearner(settings, load_dataset("digits", image_size=8), CPU)
    for _ in range(3):
        classifier.step()


def test_an_older_processor_trains_too():
    """oneDNN and PyTorch are held to the instructions of a processor with AVX2 and without AVX-512."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA"):
        pytest.skip("this run is held to older instructions already")
    chosen = "gradients or tiny_runs or (host_reads and step_reads)"
    files = [str(ROOT / "tests" / name) for name in ("test_memory_order.py", "learner/test_host_reads.py")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", chosen, *files],
        cwd=ROOT,
        env={**os.environ, **OLDER_PROCESSOR, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
