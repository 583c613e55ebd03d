"""The AutoAttack adapter: the same examples as the package itself, nothing left behind, continuation, warnings."""

import shutil
import sys

import pytest
import torch
from torch import nn

from astra_env.errors import CheckpointError, InputError
from astra_env.evaluation import robust_accuracy
from astra_env.evaluation.measures.auto_attack import autoattack
from astra_env.evaluation.measures.batches import take
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.strategy import Attack

pyautoattack = pytest.importorskip("pyautoattack")
EPSILON = 40 / 255


@pytest.fixture(scope="module")
def sample(digits):
    part = take(digits[1], 40, seed=1)
    return part, part.images.float() / 255, part.labels


def test_adversarial_examples_are_bit_identical_to_the_package_called_directly(small_net, sample):
    _, images, labels = sample
    ours = autoattack(small_net, images, labels, epsilon=EPSILON, version="quick", batch_size=16, seed=3)
    with torch.random.fork_rng(devices=[]):
        direct = pyautoattack.AutoAttack(
            small_net, norm="Linf", eps=EPSILON, version="standard", seed=3, device=torch.device("cpu")
        )
        direct.attacks_to_run = ["apgd-ce", "apgd-t"]
        theirs, predicted = direct.run_standard_evaluation(images, labels, batch_size=16)
    assert torch.equal(ours.adversarial, theirs)
    assert ours.robust.correct == int((predicted == labels).sum())
    assert 0 < ours.robust.correct < ours.clean.correct
    assert "subset" in ours.label


def test_standard_autoattack_is_at_most_pgd_which_is_at_most_clean(small_net, sample):
    part, images, labels = sample
    ten = slice(0, 12)
    result = autoattack(small_net, images[ten], labels[ten], epsilon=EPSILON)
    pgd = robust_accuracy(small_net, part.subset(torch.arange(12)), Attack.crossing(EPSILON, 20))
    assert list(result.after) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert result.robust.correct <= pgd.correct <= result.clean.correct
    assert result.label == "AutoAttack (standard)"
    assert float((result.adversarial - images[ten]).abs().max()) <= EPSILON + 1e-6


def test_random_state_tracing_mode_and_gradients_are_restored(small_net, sample):
    _, images, labels = sample
    small_net.train()
    before = torch.random.get_rng_state()

    def trace(frame, event, argument):
        return None

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        autoattack(small_net, images[:4], labels[:4], epsilon=EPSILON, version="quick")
        assert sys.gettrace() is trace
    finally:
        sys.settrace(outer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert small_net.training
    assert all(parameter.requires_grad for parameter in small_net.parameters())
    small_net.eval()


class _Breaks(nn.Module):
    """Forwards to another model until its calls are used up, as a crash would."""

    def __init__(self, model, calls):
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.model(images)


def test_a_broken_off_run_continues_to_the_same_examples(small_net, sample, tmp_path):
    _, images, labels = sample
    settings = {"epsilon": EPSILON, "version": "quick", "batch_size": 16}
    unbroken = _Breaks(small_net, 10**9)
    whole = autoattack(unbroken, images, labels, **settings)
    breaking = _Breaks(small_net, 150)
    with pytest.raises(KeyboardInterrupt):
        autoattack(breaking, images, labels, state_path=tmp_path / "aa.pt", **settings)
    assert (tmp_path / "aa.pt").is_file()
    counting = _Breaks(small_net, 10**9)
    rest = autoattack(counting, images, labels, state_path=tmp_path / "aa.pt", **settings)
    assert torch.equal(rest.adversarial, whole.adversarial)
    assert rest.after == whole.after
    assert counting.calls - unbroken.calls > 80
    again = _Breaks(small_net, 10)  # only the adapter's own look at the class count
    assert autoattack(again, images, labels, state_path=tmp_path / "aa.pt", **settings).robust == whole.robust


def test_a_crash_loses_no_finished_attack(small_net, sample, tmp_path):
    _, images, labels = sample
    settings = {"epsilon": EPSILON, "version": "quick"}

    class Crashes(_Breaks):
        def forward(self, images):
            if self.calls == 0:  # what a killed process leaves on the disk, before anything can be tidied up
                shutil.copy(tmp_path / "aa.pt", tmp_path / "left.pt")
            return super().forward(images)

    unbroken = _Breaks(small_net, 10**9)
    whole = autoattack(unbroken, images[:8], labels[:8], **settings)
    with pytest.raises(KeyboardInterrupt):
        autoattack(Crashes(small_net, 150), images[:8], labels[:8], state_path=tmp_path / "aa.pt", **settings)
    assert list(load_checkpoint(tmp_path / "left.pt")["counts"]) == ["clean", "apgd-ce"]
    resumed = _Breaks(small_net, 10**9)
    rest = autoattack(resumed, images[:8], labels[:8], state_path=tmp_path / "left.pt", **settings)
    assert torch.equal(rest.adversarial, whole.adversarial)
    assert rest.after == whole.after
    assert resumed.calls - unbroken.calls > 100


def test_the_state_of_another_attack_is_refused(small_net, sample, tmp_path):
    _, images, labels = sample
    path = tmp_path / "aa.pt"
    autoattack(small_net, images[:4], labels[:4], epsilon=EPSILON, version="quick", state_path=path)
    with pytest.raises(CheckpointError, match="another model, other images or settings"):
        autoattack(small_net, images[:4], labels[:4], epsilon=EPSILON / 2, version="quick", state_path=path)


def test_a_gradient_masked_model_raises_the_documented_warning(small_net, sample):
    _, images, labels = sample

    class Masked(nn.Module):
        def forward(self, images):
            return small_net((images * 4).round() / 4)

    result = autoattack(Masked(), images[:8], labels[:8], epsilon=EPSILON, version="quick")
    assert any("zero gradient" in warning for warning in result.warnings)
    assert len(set(result.warnings)) == len(result.warnings)


def test_a_model_of_probabilities_is_warned_of(small_net, sample):
    _, images, labels = sample

    class Probabilities(nn.Module):
        def forward(self, images):
            return small_net(images).softmax(1)

    result = autoattack(Probabilities(), images[:4], labels[:4], epsilon=EPSILON, version="quick")
    assert any("probability distribution" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 255, r"images: expected values in \[0, 1\]"),
        (lambda x: x * float("nan"), r"images: expected values in \[0, 1\]"),
        (lambda x: (x * 255).byte(), "images: expected float"),
    ],
)
def test_images_outside_the_box_are_refused(small_net, sample, change, message):
    _, images, labels = sample
    with pytest.raises(InputError, match=message):
        autoattack(small_net, change(images), labels, epsilon=EPSILON)


def test_too_few_classes_for_targeted_attacks_are_refused(sample):
    _, images, labels = sample
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    with pytest.raises(InputError, match="at least 4 classes"):
        autoattack(model, images, labels.clamp(max=2), epsilon=EPSILON)
