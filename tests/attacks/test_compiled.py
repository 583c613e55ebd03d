"""The compiled attack gives the attack's result and compiles a few sizes, once each."""

import pytest
import torch
from random_weights import fill_deterministically

from astra_env.attacks import contrastive_attack
from astra_env.attacks.compiled import BUCKETS, Compiled, bucket_sizes
from astra_env.errors import ConfigError
from astra_env.models import target_resnet18
from astra_env.models.folded import Folded
from astra_env.strategy import AttackStrategy

VIEWS = 16


class Backend:
    """A backend that runs what it is given and remembers the sizes it was asked to compile."""

    def __init__(self):
        self.sizes = []

    def __call__(self, graph, inputs):
        self.sizes.append(next(tensor.shape[0] for tensor in inputs if getattr(tensor, "dim", int)() == 4))
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def setting(channels_last=False):
    network = fill_deterministically(target_resnet18(width=4, blocks=(1,), feature_dim=8, hidden_dim=8)).double()
    views = torch.rand(VIEWS, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if channels_last:
        network, views = network.to(memory_format=torch.channels_last), views.to(memory_format=torch.channels_last)
    return network.eval(), views


def shrinking(seed):
    steps = torch.randint(0, 6, (VIEWS,), generator=torch.Generator().manual_seed(seed))
    return AttackStrategy(torch.full((VIEWS,), 8 / 255), steps, torch.full((VIEWS,), 2 / 255))


def attack(network, views, strategy, forward):
    return contrastive_attack(network, views, strategy, init=torch.zeros_like(views), forward=forward)


def test_every_size_is_compiled_once_however_the_active_set_shrinks():
    network, views = setting(channels_last=True)
    backend = Backend()
    folded = Folded(network, torch.float64, branch="adv")
    forward = Compiled(folded.inner.forward, VIEWS, backend=backend)
    for seed in range(3):
        with torch.no_grad():
            network.fc.fc1.weight.mul_(1.01)
        folded.refresh()
        strategy = shrinking(seed)
        compiled = attack(network, views, strategy, forward)
        plain = attack(network, views, strategy, Folded(network, torch.float64, branch="adv"))
        assert ((compiled.adversarial - plain.adversarial).abs() < 1e-9).double().mean() > 0.999
        torch.testing.assert_close(compiled.outputs, plain.outputs, rtol=1e-6, atol=1e-8)
    assert len(backend.sizes) == len(set(backend.sizes))
    assert set(backend.sizes) <= {4, 8, 12, 16}
    assert {4, 16} <= set(backend.sizes)


def test_another_network_in_the_same_process_compiles_its_own():
    views = setting()[1]
    for _ in range(3):
        network, backend = setting()[0], Backend()
        forward = Compiled(Folded(network, torch.float64, branch="adv").inner.forward, VIEWS, backend=backend)
        for size in forward.sizes:
            forward(views[:size].clone().requires_grad_())
        assert backend.sizes == [4, 8, 12, 16]


def test_gradients_ignore_the_padding():
    network, views = setting()
    folded = Folded(network, torch.float64, branch="adv")
    forward = Compiled(folded.inner.forward, VIEWS, backend="aot_eager")
    inputs = [views[:5].clone().requires_grad_() for _ in range(2)]
    gradients = [
        torch.autograd.grad(call(x).square().sum(), x)[0]
        for call, x in zip((forward, folded.forward), inputs, strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_sizes_are_few_and_end_with_the_whole_batch():
    assert bucket_sizes(1024) == (256, 512, 768, 1024)
    assert bucket_sizes(6) == (2, 3, 5, 6)
    assert bucket_sizes(2) == (1, 2)
    assert len(bucket_sizes(1000)) == BUCKETS


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="compile: expected one of default"):
        Compiled(lambda images: images, 4, mode="fastest")
