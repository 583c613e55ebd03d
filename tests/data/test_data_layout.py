"""How image folders may look: with and without splits, classes and labels; what is misnamed gets a remedy."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_images import ImageFolder, pixels

from astra_env.config.schema import DataConfig
from astra_env.data import ImageDataset, cache, load_dataset
from astra_env.data.training_images import load_training_images
from astra_env.errors import DataError


def load(root: Path, split: str = "train", **options: object) -> ImageDataset:
    return load_dataset("folder", split, root=root, progress=False, **options)  # type: ignore[arg-type]


def image(seed: int) -> torch.Tensor:
    return torch.from_numpy(pixels(seed)).permute(2, 0, 1)


def save(seed: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)


def test_hidden_and_system_files_are_passed_over(image_folder: ImageFolder) -> None:
    root = image_folder()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0000.png", "readme.txt", "LICENSE", "Picasa.ini"):
        (root / "train" / "cat" / name).write_text("x")
    for name in (".ipynb_checkpoints", "__MACOSX", "lost+found", "System Volume Information"):
        (root / "train" / name).mkdir()
    assert load(root).classes == ("cat", "dog")
    assert len(load(root)) == 6


def test_bad_layouts_are_named(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder(root=tmp_path / "a")
    (root / "train" / "empty").mkdir()
    (root / "test" / "empty").mkdir()
    with pytest.raises(DataError, match=r"train/empty: expected images, found none"):
        load(root)

    root = image_folder(root=tmp_path / "b")
    (root / "train" / "cat" / "nested").mkdir()
    with pytest.raises(DataError, match=r"cat/nested: expected an image file, found a folder; move its images up"):
        load(root)

    root = image_folder(root=tmp_path / "c")
    (root / "train" / "cat" / "0000.png").rename(root / "train" / "stray.png")
    with pytest.raises(DataError, match=r"train/stray\.png: image outside a class folder"):
        load(root)

    (tmp_path / "d" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"d/train: expected one folder of images per class"):
        load(tmp_path / "d")


@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_that_differ_between_splits_are_named(image_folder: ImageFolder, split: str) -> None:
    root = image_folder()
    shutil.copytree(root / "test" / "dog", root / "test" / "zebra")
    with pytest.raises(DataError, match=r"same class folders; only one has zebra"):
        load(root, split)


def test_a_missing_folder_names_the_exact_path(image_folder: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/nowhere/train/<class>.*--data\.root"):
        load(tmp_path / "nowhere")
    root = image_folder(("train",))
    assert len(load(root)) == 6
    with pytest.raises(DataError, match=r"test/<class> or .*/val/<class>.*--data\.holdout 0\.1"):
        load(root, "test")


@pytest.mark.parametrize(
    ("split", "wrong", "right"), [("train", "Train", "train"), ("test", "valid", "val"), ("test", "Testing", "test")]
)
def test_a_misnamed_split_says_what_to_rename_it_to(
    image_folder: ImageFolder, split: str, wrong: str, right: str
) -> None:
    root = image_folder((wrong,))
    for asked in {split, "pretrain" if split == "train" else split}:
        with pytest.raises(DataError, match=rf"images/{wrong}: .*rename it to .*/{right}$"):
            load(root, asked)


def test_a_flat_folder_is_taken_for_pretraining_without_labels(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    for index in range(3):
        save(index, root / f"{index}.png")
    (root / "readme.txt").write_text("about")
    with pytest.warns(
        UserWarning, match=r"3 images under .*/flat are taken without labels; an evaluation needs"
    ) as told:
        dataset = load(root, "pretrain")
    assert len(told) == 1
    assert torch.equal(dataset.images, torch.stack([image(0), image(1), image(2)]))
    assert (dataset.labels.tolist(), dataset.classes) == ([-1, -1, -1], ())
    with pytest.raises(DataError, match=r"have no labels.*/flat/train/<class>/"):
        load(root, "train")
    with pytest.raises(DataError, match=r"data\.holdout: .*have no labels"):
        load(root, "pretrain", holdout=0.1)
    config = DataConfig("folder", str(root), max_images=2)
    with pytest.warns(UserWarning, match="without labels"):
        assert len(load_training_images(config, torch.device("cpu"), progress=False)) == 2


def test_nested_folders_without_a_split_are_walked_in_sorted_order_and_other_files_are_named(tmp_path: Path) -> None:
    root = tmp_path / "nested"
    for seed, name in enumerate(("2023/12/b.png", "2024/01/a.png", "z.png")):
        save(seed, root / name)
    (root / "2024" / "notes.json").write_text("{}")
    (root / "2024" / "loop").symlink_to(root)
    with pytest.warns(UserWarning, match=r"3 images .*; 1 other files were left aside, the first is .*notes\.json"):
        dataset = load(root, "pretrain")
    assert torch.equal(dataset.images, torch.stack([image(2), image(0), image(1)]))


def test_an_unlabelled_train_folder_beside_nothing_else_is_taken_for_pretraining_only(tmp_path: Path) -> None:
    save(0, tmp_path / "train" / "a.png")
    with pytest.warns(UserWarning, match="without labels"):
        assert len(load(tmp_path, "pretrain")) == 1
    with pytest.raises(DataError, match=r"a\.png: image outside a class folder"):
        load(tmp_path, "train")


def test_class_folders_without_a_split_are_for_training_and_ask_for_a_test_split(image_folder: ImageFolder) -> None:
    root = image_folder(("train",), per_class=10) / "train"
    with pytest.warns(UserWarning, match=r"needs test images: set --data\.holdout 0\.1"):
        dataset = load(root, "pretrain")
    assert (len(dataset), dataset.classes) == (20, ("cat", "dog"))
    with pytest.raises(DataError, match=r"--data\.holdout 0\.1"):
        load(root, "test")


@pytest.mark.parametrize("unsplit", [False, True])
def test_holdout_makes_a_seeded_balanced_test_split_that_is_not_trained_on(
    image_folder: ImageFolder, recwarn: pytest.WarningsRecorder, unsplit: bool
) -> None:
    root = image_folder(("train",), per_class=10)
    root = root / "train" if unsplit else root
    pretrain, train, test = (load(root, split, holdout=0.2) for split in ("pretrain", "train", "test"))
    assert (len(train), test.labels.bincount().tolist(), test.split) == (16, [2, 2], "test")
    assert torch.equal(pretrain.images, train.images)
    every = torch.cat([train.images, test.images]).flatten(1)
    assert len({tuple(row) for row in every.tolist()}) == 20
    shutil.rmtree(cache.places(root, None)[0])
    load(root, image_size=8) if not unsplit else None
    assert torch.equal(load(root, "test", holdout=0.2).images, test.images)
    assert not recwarn.list


def test_a_holdout_that_cannot_be_is_one_line(image_folder: ImageFolder) -> None:
    root = image_folder()
    with pytest.raises(DataError, match=r"data\.holdout: .*/test is there already; leave data\.holdout null"):
        load(root, holdout=0.5)
    with pytest.raises(DataError, match=r"data\.holdout: digits has test images of its own"):
        load_dataset("digits", holdout=0.5)
    shutil.rmtree(root / "test")
    with pytest.raises(DataError, match=r"data\.holdout: expected a share between 0 and 1, such as 0\.1, got 1\.5"):
        load(root, holdout=1.5)
    with pytest.raises(DataError, match=r"data\.holdout: 0\.01 of the images cannot be held out"):
        load(root, holdout=0.01)


def test_only_the_images_that_max_images_chooses_are_decoded(image_folder: ImageFolder) -> None:
    root = image_folder(per_class=10)
    config = DataConfig("folder", str(root), max_images=4)
    chosen = load_training_images(config, torch.device("cpu"), progress=False)
    assert (chosen.labels.tolist(), chosen.total) == ([0, 0, 1, 1], 20)
    (file,) = cache.places(root, None)[0].glob("*.npy")
    assert file.stat().st_size < 4 * 3 * 64 + 200
    whole = load(root)
    assert torch.equal(load_training_images(config, torch.device("cpu"), progress=False).images, chosen.images)
    assert {tuple(i.flatten().tolist()) for i in chosen.images} <= {tuple(i.flatten().tolist()) for i in whole.images}
