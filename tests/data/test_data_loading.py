"""Loading by name, digits, budgets, and class-balanced parts."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from astra_env.config.schema import DataConfig
from astra_env.data import DATASETS, ImageDataset, ReadRequest, label_fraction, load_dataset, split_validation
from astra_env.data.subsets import proportional_rows
from astra_env.data.training_images import load_training_images
from astra_env.errors import ConfigError, DataError


def small(labels: list[int], classes: int = 2) -> ImageDataset:
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return ImageDataset("small", "train", images, torch.tensor(labels), tuple("abcdef"[:classes]))


def test_digits_are_1437_and_360_disjoint_stratified_rgb_images() -> None:
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    assert train.images.shape == (1437, 3, 16, 16)
    assert test.images.shape == (360, 3, 16, 16)
    total = torch.bincount(torch.from_numpy(load_digits().target))
    assert torch.equal(train.labels.bincount() + test.labels.bincount(), total)
    assert (test.labels.bincount() - total * 360 / 1797).abs().max() < 1
    assert torch.equal(train.images[:, 0], train.images[:, 2])
    assert train.images.max() == 255
    assert train.images.min() == 0


def test_digits_at_their_own_size_are_the_bundled_values() -> None:
    parts = [load_dataset("digits", split, image_size=8) for split in ("train", "test")]
    found = torch.cat([part.images[:, 1] for part in parts]).double()
    expected = (torch.from_numpy(load_digits().images) * 255 / 16).round()
    assert torch.equal(found.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)


def test_digits_are_the_same_every_time() -> None:
    assert torch.equal(load_dataset("digits").images, load_dataset("digits", "pretrain").images)


def test_importing_the_package_pays_for_neither_torchvision_nor_sklearn() -> None:
    code = "import sys, astra_env.data; print([m for m in ('torchvision', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_unknown_names_and_splits_list_what_there_is() -> None:
    with pytest.raises(DataError, match=r"data\.name: expected one of cifar10, cifar100, digits, .*got 'cifar'"):
        load_dataset("cifar")
    with pytest.raises(DataError, match=r"split: expected one of pretrain, train, test, got 'val'"):
        load_dataset("digits", "val")
    with pytest.raises(DataError, match=r"data\.image_size: .*got 0"):
        load_dataset("digits", image_size=0)
    with pytest.raises(DataError, match=r"workers: expected at least 1, got 0"):
        load_dataset("digits", workers=0)
    assert set(DATASETS) == {"digits", "cifar10", "cifar100", "stl10", "tiny_imagenet", "folder"}


def test_a_user_function_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(request: ReadRequest) -> ImageDataset:
        assert (request.split, request.root, request.image_size) == ("test", tmp_path, 2)
        return small([0, 1])

    module = types.ModuleType("user_data")
    module.mine, module.wrong = mine, lambda request: 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "user_data", module)
    assert len(load_dataset("user_data:mine", "test", root=tmp_path, image_size=2)) == 2
    with pytest.raises(DataError, match="must return an ImageDataset, it returned int"):
        load_dataset("user_data:wrong")
    with pytest.raises(DataError, match="no 'absent'"):
        load_dataset("user_data:absent")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent_is_said() -> None:
    with pytest.raises(ConfigError, match="'cuda' was asked for"):
        load_dataset("digits", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_byte_budget_decides_between_device_and_host() -> None:
    on_device = load_dataset("digits", device="cuda")
    on_host = load_dataset("digits", device="cuda", max_device_bytes=1000)
    assert on_device.images.is_cuda
    assert on_device.labels.is_cuda
    assert not on_host.images.is_cuda
    assert not on_host.labels.is_cuda
    rows = torch.tensor([3, 1400, 3])
    for dataset in (on_device, on_host):
        batch = dataset.gather(rows, "cuda")
        assert batch.is_cuda
        assert torch.equal(batch.cpu(), on_host.images[rows])
        assert torch.equal(dataset.gather(rows.cuda(), "cpu"), on_host.images[rows])
    assert torch.equal(on_device.subset(rows).images.cpu(), on_host.images[rows])


def test_gather_and_subset_keep_order_and_repeats() -> None:
    dataset = small([0, 1, 0, 1])
    assert dataset.gather(torch.tensor([3, 0, 3]))[:, 0, 0, 0].tolist() == [3, 0, 3]
    part = dataset.subset(torch.tensor([3, 0]))
    assert part.labels.tolist() == [1, 0]
    assert part.images[:, 2, 1, 1].tolist() == [3, 0]


def test_a_data_set_that_does_not_fit_together_is_refused() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="uint8"):
        ImageDataset("x", "train", images.float(), torch.tensor([0, 0]), ("a",))
    with pytest.raises(DataError, match=r"labels as int64 \(2,\)"):
        ImageDataset("x", "train", images, torch.tensor([0]), ("a",))
    with pytest.raises(DataError, match=r"labels in -1\.\.0, got 0\.\.1"):
        ImageDataset("x", "train", images, torch.tensor([0, 1]), ("a",))
    with pytest.raises(DataError, match="at least one image"):
        ImageDataset("x", "train", images[:0], torch.tensor([], dtype=torch.int64), ("a",))


def test_validation_takes_every_class_in_proportion_and_nothing_twice() -> None:
    dataset = small([0] * 30 + [1] * 10)
    train, validation = split_validation(dataset, 8, seed=0)
    assert validation.labels.bincount().tolist() == [6, 2]
    assert train.labels.bincount().tolist() == [24, 8]
    together = torch.cat([train.images, validation.images])[:, 0, 0, 0].sort().values
    assert together.tolist() == list(range(40))
    again = split_validation(dataset, 8, seed=0)[1]
    other = split_validation(dataset, 8, seed=1)[1]
    assert torch.equal(again.images, validation.images)
    assert not torch.equal(other.images, validation.images)


def test_validation_that_would_empty_a_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected 2\.\.38 of the 40 images.*got 39"):
        split_validation(small([0] * 30 + [1] * 10), 39, seed=0)
    with pytest.raises(DataError, match="takes 0 of the 1 images of class 'b'"):
        split_validation(small([0] * 30 + [1]), 4, seed=0)


def test_a_label_fraction_keeps_every_class_in_proportion() -> None:
    part = label_fraction(small([0] * 40 + [1] * 20), 0.1, seed=0)
    assert part.labels.bincount().tolist() == [4, 2]
    assert torch.equal(part.images, label_fraction(small([0] * 40 + [1] * 20), 0.1, seed=0).images)
    assert len(label_fraction(small([0, 1]), 1.0, seed=0)) == 2


def test_a_label_fraction_that_would_empty_a_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"0\.1 of the 4 images of class 'b' leaves none; use at least 0\.25"):
        label_fraction(small([0] * 40 + [1] * 4), 0.1, seed=0)
    with pytest.raises(DataError, match=r"\(0, 1\], got 1\.5"):
        label_fraction(small([0, 1]), 1.5, seed=0)


def test_unlabelled_images_cannot_be_split_by_class() -> None:
    for call in (lambda d: split_validation(d, 2, 0), lambda d: label_fraction(d, 0.5, 0)):
        with pytest.raises(DataError, match="1 images have no label; use the 'train' or 'test' split"):
            call(small([0, 1, -1]))


@pytest.mark.parametrize("count", [10, 128, 129, 1000])
def test_max_images_gives_exactly_that_many_and_every_class_in_proportion(count: int) -> None:
    part = load_training_images(DataConfig("digits", max_images=count), torch.device("cpu"))
    whole = load_dataset("digits")
    assert len(part) == count
    expected = whole.labels.bincount() * count / len(whole)
    assert (part.labels.bincount() - expected).abs().max() < 1


def test_max_images_that_rounding_gives_already_are_the_ones_they_were() -> None:
    dataset = small([0] * 40 + [1] * 20)
    rows = proportional_rows(dataset, 6, seed=0)
    assert torch.equal(dataset.subset(rows).images, label_fraction(dataset, 0.1, seed=0).images)


def test_a_rare_class_keeps_an_image_however_few_are_used() -> None:
    rows = proportional_rows(small([0] * 40 + [1]), 3, seed=0)
    assert small([0] * 40 + [1]).labels[rows].tolist() == [0, 0, 1]
