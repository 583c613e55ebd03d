"""A small digits classifier, adversarially trained in seconds, shared by the evaluation tests."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import supervised_pgd
from astra_env.data import ImageDataset, load_dataset
from astra_env.models import TargetNetwork, target_resnet18


class SmallNet(nn.Module):
    """Two convolutions and a linear head: enough for digits."""

    embed_dim = 32

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.hidden = nn.Linear(32 * 16, self.embed_dim)
        self.linear = nn.Linear(self.embed_dim, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        return self.hidden(self.features(images).flatten(1)).relu()

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.embed(images))


@pytest.fixture(scope="session")
def digits() -> tuple[ImageDataset, ImageDataset]:
    return load_dataset("digits"), load_dataset("digits", "test")


@pytest.fixture(scope="session")
def small_net(digits: tuple[ImageDataset, ImageDataset]) -> SmallNet:
    """Trained against PGD-3 at 24/255, so that its robust accuracy lies well between 0 and its clean accuracy."""
    train = digits[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallNet()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    images, labels = train.images.float() / 255, train.labels
    for _ in range(8):
        for rows in torch.randperm(len(train), generator=generator).split(64):
            attacked = supervised_pgd(
                net, images[rows], labels[rows], epsilon=24 / 255, step_size=12 / 255, steps=3, generator=generator
            )
            loss = F.cross_entropy(net(attacked), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def target() -> TargetNetwork:
    return target_resnet18(
        width=4, blocks=(1, 1), feature_dim=6, hidden_dim=8, generator=torch.Generator().manual_seed(0)
    )
