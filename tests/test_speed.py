"""The switch for what pays, and settings of CUDA that a run leaves as it found them."""

import pytest
import torch

from astra_env.compute import Speed, multiplies_bf16, tf32
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig, LearnerConfig
from astra_env.data import load_dataset
from astra_env.errors import ConfigError
from astra_env.learner.contrastive import ContrastiveLearner
from rpat import RPATConfig
from rpat.config import PRESET_PACKAGE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def precisions():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_or_forbidden_and_restored(allowed):
    before, during = precisions(), []
    with tf32(allowed):
        during += [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    assert during == [allowed, allowed]
    assert precisions() == before


def test_tf32_is_restored_after_an_error():
    before = precisions()
    with pytest.raises(ZeroDivisionError), tf32(True):
        raise ZeroDivisionError
    assert precisions() == before
    with tf32(None):
        assert precisions() == before


def test_exact_is_the_default():
    assert Speed.of(LearnerConfig(), CPU) == Speed()


def test_fast_turns_on_what_pays_on_the_cpu():
    speed = Speed.of(LearnerConfig(fast=True), CPU)
    assert speed.channels_last
    assert speed.fold_batchnorm
    assert (speed.autocast is torch.bfloat16) == multiplies_bf16(CPU)
    assert speed.compile == "none"
    assert speed.tf32 is None


def test_fast_allows_tf32_on_cuda_unless_it_is_forbidden(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert Speed.of(LearnerConfig(fast=True), CUDA).tf32
    assert Speed.of(LearnerConfig(fast=True, tf32=False), CUDA).tf32 is False
    assert Speed.of(LearnerConfig(), CUDA).tf32 is None
    assert Speed.of(LearnerConfig(fast=True), CUDA).autocast is torch.bfloat16


def test_fast_does_not_fold_what_cannot_be_folded():
    speed = Speed.of(LearnerConfig(fast=True, compile="default"), CPU, foldable=False)
    assert not speed.fold_batchnorm
    assert speed.compile == "none"


@pytest.mark.parametrize("norm", ["branch", "group"])
def test_a_fast_step_trains_close_to_the_exact_one(norm):
    digits = load_dataset("digits", image_size=8)
    terms = {}
    for fast in (False, True):
        # A small rate: LARS moves norm biases, which start at zero, by their whole gradient, and bf16 rounds gradients.
        options = {"learner.fast": fast, "learner.learning_rate": 0.1, "target.norm": norm, "device": "cpu"}
        config = load_config(ExperimentConfig, "tiny", options)
        made = ContrastiveLearner(config, digits)
        strategy = made.space.decode(torch.tensor([1, 1, 1]))
        terms[fast] = [made.step(strategy).scalars()["loss"] for _ in range(2)]
    assert terms[True] == pytest.approx(terms[False], rel=0.05)
    if multiplies_bf16(CPU):
        assert terms[True] != terms[False]


def test_compiling_needs_a_copy_to_compile():
    with pytest.raises(ConfigError, match=r"learner.compile: 'default' compiles the attack's copy"):
        load_config(ExperimentConfig, "tiny", {"learner.compile": "default"})
    with pytest.raises(ConfigError, match=r"learner.compile: expected one of none, default"):
        load_config(ExperimentConfig, "tiny", {"learner.compile": "quick"})
    with pytest.raises(ConfigError, match=r"learner.compile: 'default' compiles .*--learner.fast true"):
        load_config(RPATConfig, "tiny", {"learner.compile": "default"}, package=PRESET_PACKAGE)
