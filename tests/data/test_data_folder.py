"""The folder reader and its decoding."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import ImageFolder, pixels

from astra_env.data import ImageDataset, cache, decode, load_dataset
from astra_env.errors import DataError


def load(root: Path, split: str = "train", **options: object) -> ImageDataset:
    return load_dataset("folder", split, root=root, progress=False, **options)  # type: ignore[arg-type]


def place(root: Path) -> Path:
    return cache.places(root, None)[0]


def test_images_arrive_exactly_in_the_order_of_sorted_classes_and_names(image_folder: ImageFolder) -> None:
    dataset = load(image_folder())
    expected = torch.stack([torch.from_numpy(pixels(seed)).permute(2, 0, 1) for seed in range(6)])
    assert torch.equal(dataset.images, expected)
    assert dataset.images.is_contiguous()
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.classes == ("cat", "dog")


def test_test_split_is_val_where_there_is_no_test(image_folder: ImageFolder) -> None:
    dataset = load(image_folder(("train", "val")), "test")
    assert torch.equal(dataset.images[0], torch.from_numpy(pixels(6)).permute(2, 0, 1))
    assert dataset.split == "test"


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_processes_decodes_the_same(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(decode, "_FILES_WORTH_A_PROCESS", 1)
    root = image_folder(per_class=20)
    parallel = load(root, workers=workers).images
    shutil.rmtree(cache.places(root, None)[0])
    assert torch.equal(load(root, workers=1).images, parallel)


def test_the_first_damaged_file_is_named_whatever_the_workers(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_FILES_WORTH_A_PROCESS", 1)
    root = image_folder(per_class=20)
    for name in ("cat/0015.png", "dog/0003.png"):
        (root / "train" / name).write_bytes(b"")
    for workers in (1, 4):
        with pytest.raises(DataError, match=r"cat/0015\.png: is not an image"):
            load(root, workers=workers)


def _load_in_daemon(root: Path, queue: "multiprocessing.Queue[int]") -> None:
    queue.put(len(load(root, workers=2)))


def test_a_daemon_process_which_may_not_have_children_can_load(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_FILES_WORTH_A_PROCESS", 1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_load_in_daemon, args=(image_folder(), queue), daemon=True)
    process.start()
    assert queue.get(timeout=30) == 6
    process.join()


def test_image_size_resizes_the_shorter_side_and_takes_the_centre(tmp_path: Path) -> None:
    wide = Image.fromarray(pixels(0, 10, 30))
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    wide.save(folder / "wide.png")
    tall.save(folder / "tall.png")
    tall_image, wide_image = load(tmp_path, image_size=5).images
    expected_wide = np.array(wide.resize((15, 5), Image.Resampling.BICUBIC).crop((5, 0, 10, 5)))
    expected_tall = np.array(tall.resize((5, 15), Image.Resampling.BICUBIC).crop((0, 5, 5, 10)))
    assert torch.equal(wide_image, torch.from_numpy(expected_wide).permute(2, 0, 1))
    assert torch.equal(tall_image, torch.from_numpy(expected_tall).permute(2, 0, 1))


def test_images_of_different_sizes_ask_for_image_size(image_folder: ImageFolder) -> None:
    root = image_folder()
    Image.fromarray(pixels(0, 9, 7)).save(root / "train" / "dog" / "0001.png")
    with pytest.raises(DataError, match=r"dog/0001\.png: is 7x9 but .*cat/0000\.png is 8x8; set --data\.image_size"):
        load(root)
    assert load(root, image_size=8).images.shape == (6, 3, 8, 8)


def test_grey_palette_and_opaque_images_become_rgb(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    colour = Image.fromarray(np.full((4, 4, 3), (10, 200, 30), dtype=np.uint8))
    colour.convert("RGBA").save(folder / "0.png")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "1.png")
    Image.fromarray(np.full((4, 4), 77, dtype=np.uint8)).save(folder / "2.png")
    images = load(tmp_path).images
    assert images[:, :, 0, 0].tolist() == [[10, 200, 30], [10, 200, 30], [77, 77, 77]]
    assert not recwarn.list


def test_transparency_is_laid_on_white_and_said_once(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for index, alpha in enumerate((0, 51)):
        Image.fromarray(np.full((4, 4, 4), (10, 200, 30, alpha), dtype=np.uint8)).save(folder / f"{index}.png")
    palette = Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).convert("P")
    palette.putpalette([9, 9, 9] * 256)
    palette.save(folder / "2.png", transparency=0)
    Image.fromarray(np.full((4, 4, 2), (9, 0), dtype=np.uint8)).save(folder / "3.png")
    with pytest.warns(UserWarning, match="4 images with transparent pixels were laid on white"):
        images = load(tmp_path).images
    assert images[:, :, 0, 0].tolist() == [[255] * 3, [206, 244, 210], [255] * 3, [255] * 3]


def test_the_exif_orientation_is_applied_and_said_once(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    upright, exif = Image.fromarray(pixels(0, 8, 8)), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "0.png", exif=exif)
    exif[0x0112] = 1
    upright.save(folder / "1.png", exif=exif)
    with pytest.warns(UserWarning, match="1 images were turned as their EXIF orientation says"):
        images = load(tmp_path).images
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize("name", ["bomb", "bomb.png"])
def test_a_decompression_bomb_is_one_line_with_and_without_a_suffix(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = image_folder()
    Image.fromarray(pixels(0, 30, 30)).save(root / "train" / "cat" / name, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=rf"cat/{name}: is too large to be decoded safely"):
        load(root)


def test_sixteen_bit_images_are_refused_and_not_clipped_to_white(image_folder: ImageFolder) -> None:
    root = image_folder()
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(root / "train" / "cat" / "0001.png")
    with pytest.raises(DataError, match=r"cat/0001\.png: expected 8 bits per channel"):
        load(root)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named(image_folder: ImageFolder, suffix: str) -> None:
    root = image_folder()
    file = root / "train" / "cat" / f"zz.{suffix}"
    Image.fromarray(pixels(0, 64, 64)).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cat/zz\.{suffix}: damaged or truncated image") as caught:
        load(root, image_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["notes.txt", "fake.jpg", "noextension"])
def test_a_file_that_is_no_image_is_named(image_folder: ImageFolder, name: str) -> None:
    root = image_folder()
    (root / "train" / "dog" / name).write_text("not pixels")
    with pytest.raises(DataError, match=rf"dog/{name}: is not an image"):
        load(root)


def test_an_image_without_a_known_suffix_is_read(image_folder: ImageFolder) -> None:
    root = image_folder()
    (root / "train" / "cat" / "0000.png").rename(root / "train" / "cat" / "0000")
    assert torch.equal(load(root).images[0], torch.from_numpy(pixels(0)).permute(2, 0, 1))
