"""The folder reader, its decoding and its cache."""

import multiprocessing
import os
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


def caches(root: Path) -> list[Path]:
    return sorted((root / cache.CACHE_NAME).glob("*.npy"))


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


def test_pretrain_is_train_and_shares_its_cache(image_folder: ImageFolder) -> None:
    root = image_folder()
    assert torch.equal(load(root, "pretrain").images, load(root, "train").images)
    assert len(caches(root)) == 1


def test_a_second_load_reads_the_cache_and_not_the_images(image_folder: ImageFolder) -> None:
    root = image_folder()
    first = load(root).images
    file = root / "train" / "cat" / "0000.png"
    state, size = file.stat(), file.stat().st_size
    file.write_bytes(b"x" * size)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert torch.equal(load(root).images, first)


def test_a_changed_file_makes_the_cache_stale_and_replaces_it(image_folder: ImageFolder) -> None:
    root = image_folder()
    load(root)
    before = caches(root)
    file = root / "train" / "cat" / "0000.png"
    size = file.stat().st_size
    Image.fromarray(pixels(99)).save(file)
    assert file.stat().st_size == size
    os.utime(file, ns=(1, 1))
    assert torch.equal(load(root).images[0], torch.from_numpy(pixels(99)).permute(2, 0, 1))
    assert len(caches(root)) == 1
    assert caches(root) != before


def test_an_added_and_a_removed_file_make_the_cache_stale(image_folder: ImageFolder) -> None:
    root = image_folder()
    assert len(load(root)) == 6
    Image.fromarray(pixels(7)).save(root / "train" / "dog" / "new.png")
    assert load(root).labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    (root / "train" / "cat" / "0001.png").unlink()
    assert load(root).labels.tolist() == [0, 0, 1, 1, 1, 1]


def test_a_cut_cache_is_built_again(image_folder: ImageFolder) -> None:
    root = image_folder()
    images = load(root).images
    (file,) = caches(root)
    file.write_bytes(file.read_bytes()[:-100])
    assert torch.equal(load(root).images, images)


def test_every_image_size_has_its_own_cache(image_folder: ImageFolder) -> None:
    root = image_folder()
    assert load(root, image_size=4).images.shape[-2:] == (4, 4)
    assert load(root, image_size=6).images.shape[-2:] == (6, 6)
    assert load(root).images.shape[-2:] == (8, 8)
    assert len(caches(root)) == 3


def test_a_failed_build_leaves_no_cache_behind(image_folder: ImageFolder) -> None:
    root = image_folder()
    (root / "train" / "dog" / "0002.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError):
        load(root)
    assert [file.name for file in (root / cache.CACHE_NAME).iterdir()] == [".lock"]


def test_what_a_killed_build_left_is_removed_by_the_next(image_folder: ImageFolder) -> None:
    root = image_folder()
    left = root / cache.CACHE_NAME / ".folder-train-native-0123.77.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    load(root)
    assert not left.exists()


def test_a_cache_beside_unwritable_images_goes_to_the_user_cache(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = image_folder()
    (root / cache.CACHE_NAME).write_text("a file where the folder should be: not writable for root either")
    images = load(root).images
    assert len(list((tmp_path / "home" / "astra_env").glob("*/*.npy"))) == 1
    assert torch.equal(load(root).images, images)


def test_no_writable_cache_at_all_is_one_line_that_names_both_places(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = image_folder()
    (root / cache.CACHE_NAME).write_text("")
    with pytest.raises(DataError, match=r"\.astra_cache.*home/astra_env.*XDG_CACHE_HOME"):
        load(root)


def test_too_little_disk_is_said_before_anything_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"need 1000000000\.0 GB and the disk has"):
        cache.begin_array(tmp_path / "x.npy", (10**18,))
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_processes_decodes_the_same(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(decode, "_FILES_WORTH_A_PROCESS", 1)
    root = image_folder(per_class=20)
    parallel = load(root, workers=workers).images
    shutil.rmtree(root / cache.CACHE_NAME)
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


def test_beyond_the_host_budget_the_images_stay_mapped(image_folder: ImageFolder) -> None:
    root = image_folder()
    memory, mapped = load(root), load(root, max_host_bytes=100)
    assert memory.spill is None
    assert mapped.spill == root / cache.CACHE_NAME
    assert torch.equal(mapped.gather(torch.tensor([5, 0])), memory.images[[5, 0]])
    before = caches(root)[0].read_bytes()
    mapped.images[0] = 0
    assert caches(root)[0].read_bytes() == before


def test_a_subset_of_mapped_images_is_mapped_and_leaves_no_file(image_folder: ImageFolder) -> None:
    root = image_folder()
    mapped = load(root, max_host_bytes=100)
    listing = sorted((root / cache.CACHE_NAME).iterdir())
    part = mapped.subset(torch.tensor([4, 1]))
    assert torch.equal(part.images, mapped.images[[4, 1]])
    assert part.labels.tolist() == [1, 0]
    assert part.spill is not None
    assert sorted((root / cache.CACHE_NAME).iterdir()) == listing


def test_a_subset_of_mapped_images_that_cannot_be_written_is_said(image_folder: ImageFolder) -> None:
    root = image_folder()
    mapped = load(root, max_host_bytes=100)
    shutil.rmtree(root / cache.CACHE_NAME)
    with pytest.raises(DataError, match=r"\.astra_cache: no room for 2 images of a subset"):
        mapped.subset(torch.tensor([0, 1]))


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


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    colour = Image.fromarray(np.full((4, 4, 3), (10, 200, 30), dtype=np.uint8))
    colour.convert("RGBA").save(folder / "0.png")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "1.png")
    Image.fromarray(np.full((4, 4), 77, dtype=np.uint8)).save(folder / "2.png")
    images = load(tmp_path).images
    assert images[:, :, 0, 0].tolist() == [[10, 200, 30], [10, 200, 30], [77, 77, 77]]


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


def test_hidden_and_system_files_are_passed_over(image_folder: ImageFolder) -> None:
    root = image_folder()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0000.png"):
        (root / "train" / "cat" / name).write_text("x")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "__MACOSX").mkdir()
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
    with pytest.raises(DataError, match=r"cat/nested: expected an image file, found a folder"):
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
    with pytest.raises(DataError, match=r"test/<class> or .*/val/<class>"):
        load(root, "test")
