"""CIFAR-C files: the layout of the published archives, read and averaged as their authors do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from astra_env.config.reading import load_config
from astra_env.errors import DataError
from astra_env.evaluation import corruption_accuracy
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.campaign.loading import load_network
from astra_env.evaluation.measures.corruption import EXTRA, STANDARD, check_folder, read_corruption
from astra_env.evaluation.measures.parts import Parts

CLASSES = tuple("0123456789")
IMAGES = 4


class ReadsFirstPixel(nn.Module):
    """Answers with the class written into the first pixel's red channel."""

    def forward(self, images):
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 10).float()


def write(folder, name, wrong_from_severity):
    """Severities below ``wrong_from_severity`` (1 to 6) are answered right, the others wrong."""
    labels = np.tile(np.arange(IMAGES), 5)
    severity = np.repeat(np.arange(1, 6), IMAGES)
    images = np.zeros((5 * IMAGES, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.where(severity < wrong_from_severity, labels, 9)
    np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", labels.astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(STANDARD):
        write(tmp_path, name, 6 if index < 12 else 3)
    write(tmp_path, "saturate", 2)
    return tmp_path


def test_mean_severities_and_extras_are_those_of_the_files(folder):
    result = corruption_accuracy(ReadsFirstPixel(), folder, CLASSES)
    assert tuple(result.standard) == STANDARD
    assert len(STANDARD) == 15
    assert len(EXTRA) == 4
    assert result.by_severity == pytest.approx((1, 1, 0.8, 0.8, 0.8))
    assert result.mean == pytest.approx(0.88)
    assert list(result.extra) == ["saturate"]
    assert [accuracy.correct for accuracy in result.extra["saturate"]] == [4, 0, 0, 0, 0]
    assert result.as_dict()["standard"]["contrast"][0]["total"] == IMAGES


def test_height_and_width_are_not_swapped(folder):
    images = np.zeros((5, 8, 8, 3), np.uint8)
    images[0, 1, 2, 0] = 7
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", np.zeros(5, np.int64))
    assert int(read_corruption(folder, "fog", CLASSES).images[0, 0, 1, 2]) == 7


def test_labels_of_one_severity_stand_for_all_five(folder):
    np.save(folder / "labels.npy", np.arange(IMAGES))
    assert torch.equal(read_corruption(folder, "fog", CLASSES).labels, torch.arange(IMAGES).repeat(5))


def test_a_missing_file_is_named_before_any_work(folder):
    (folder / "zoom_blur.npy").unlink()
    with pytest.raises(DataError, match=r"zoom_blur\.npy: missing; point --corruptions"):
        corruption_accuracy(ReadsFirstPixel(), folder, CLASSES)


def test_images_of_another_size_than_the_test_images_are_refused(folder):
    assert len(check_folder(folder, (8, 8))) == 16
    with pytest.raises(
        DataError, match=r"expected images of 16x16 pixels like the test images, got 8x8; .*image_size 8"
    ):
        check_folder(folder, (16, 16))


def test_what_was_measured_before_an_interruption_is_not_measured_again(folder, tmp_path):
    class Counts(ReadsFirstPixel):
        left = 40

        def forward(self, images):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().forward(images)

    path, model = tmp_path / "unfinished" / "parts.json", Counts()
    whole = corruption_accuracy(ReadsFirstPixel(), folder, CLASSES)
    with pytest.raises(KeyboardInterrupt):
        corruption_accuracy(model, folder, CLASSES, remember=Parts(path, "me"))
    model.left = 16 * 5 - 40
    parts = Parts(path, "me")
    assert corruption_accuracy(model, folder, CLASSES, remember=parts) == whole
    model.left = 0
    with pytest.raises(KeyboardInterrupt):
        corruption_accuracy(model, folder, CLASSES, remember=Parts(path, "another model"))
    path.write_text("{torn")
    with pytest.raises(KeyboardInterrupt):
        corruption_accuracy(model, folder, CLASSES, remember=Parts(path, "me"))
    parts.finish()
    assert not path.exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((20, 8, 8, 3), np.float32), "expected uint8"),
        (np.zeros((21, 8, 8, 3), np.uint8), "expected uint8"),
        (np.zeros((50, 8, 8, 3), np.uint8), "expected 50 integer labels"),
        (np.array([{}], dtype=object), "not a readable .npy file"),
    ],
)
def test_a_malformed_file_is_named(folder, images, message):
    np.save(folder / "fog.npy", images, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        corruption_accuracy(ReadsFirstPixel(), folder, CLASSES)


def test_an_evaluation_reports_corruptions_and_leaves_nothing_unfinished(folder, tmp_path):
    from random_weights import randomized

    from astra_env.evaluation.campaign.report import markdown
    from astra_env.evaluation.campaign.runner import evaluate
    from astra_env.models import resnet18

    torch.save(randomized(resnet18(10, width=4)).state_dict(), tmp_path / "net.pt")
    settings = {"corruptions": str(folder), "curves": ["noise"], "attacks": [], "data.max_test_images": 3}
    config = load_config(
        EvaluationConfig,
        None,
        {**settings, "data.name": "digits", "data.image_size": 8},
        package="astra_env.evaluation.campaign.presets",
    )
    found = evaluate(config, [tmp_path / "net.pt"], tmp_path / "out")
    measured = found["networks"]["net"]["measurements"]["corruptions"]
    direct = corruption_accuracy(load_network(tmp_path / "net.pt").network, folder, CLASSES, max_images=3)
    assert measured["mean"] == direct.mean
    assert measured["by_severity"] == list(direct.by_severity)
    row = f"| net | {100 * direct.mean:.2f} | {100 * direct.by_severity[0]:.2f} |"
    assert row in markdown(found)
    assert list((tmp_path / "out" / "unfinished").iterdir()) == []
    with pytest.raises(DataError, match="expected images of 16x16 pixels"):
        evaluate(replace(config, data=replace(config.data, image_size=16)), [tmp_path / "net.pt"], tmp_path / "other")
