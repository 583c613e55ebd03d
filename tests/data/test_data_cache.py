"""The cache of decoded images: where it lies, when it is used, what becomes of it when something goes wrong."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_images import ImageFolder, pixels

from astra_env.data import ImageDataset, cache, load_dataset
from astra_env.errors import DataError


def load(root: Path, split: str = "train", **options: object) -> ImageDataset:
    return load_dataset("folder", split, root=root, progress=False, **options)  # type: ignore[arg-type]


def place(root: Path) -> Path:
    return cache.places(root, None)[0]


def caches(root: Path) -> list[Path]:
    return sorted(place(root).glob("*.npy"))


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
    assert [file.name for file in place(root).iterdir()] == [".lock"]


def test_what_a_killed_build_left_is_removed_by_the_next(image_folder: ImageFolder) -> None:
    root = image_folder()
    left = place(root) / ".folder-train-native-0123.77.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    load(root)
    assert not left.exists()


def test_decoded_images_go_to_the_user_cache_and_the_data_set_stays_as_it_is(
    image_folder: ImageFolder, user_cache: Path
) -> None:
    root = image_folder()
    before = sorted(root.rglob("*"))
    load(root)
    assert sorted(root.rglob("*")) == before
    assert len(list(user_cache.glob("*/*.npy"))) == 1


def test_data_cache_is_the_only_place_when_it_is_given(image_folder: ImageFolder, user_cache: Path) -> None:
    root = image_folder()
    images = load(root, cache=root.parent / "mine").images
    assert len(list((root.parent / "mine").glob("*/*.npy"))) == 1
    assert not user_cache.exists()
    assert torch.equal(load(root, cache=root.parent / "mine").images, images)
    (root.parent / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache: cannot write .*/file/.*--data\.cache"):
        load(root, cache=root.parent / "file")


def test_without_a_home_the_cache_lies_beside_the_images_or_among_temporary_files_with_a_line(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    root = image_folder()
    with pytest.warns(UserWarning, match=r"data\.cache: decoded images are kept in .*\.astra_cache .*no home folder"):
        images = load(root).images
    shutil.rmtree(root / cache.CACHE_NAME)
    (root / cache.CACHE_NAME).write_text("a file where the folder should be: not writable for root either")
    with pytest.warns(UserWarning, match=r"kept in .*/tmp/astra_env-.*\.astra_cache \(File exists\).*--data\.cache"):
        assert torch.equal(load(root).images, images)
    assert torch.equal(load(root).images, images)


def test_no_writable_cache_at_all_is_one_line_that_names_all_places(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "home"))
    root = image_folder()
    (root / cache.CACHE_NAME).write_text("")
    with pytest.raises(DataError, match=r"home/cache/astra_env.*\.astra_cache.*home/astra_env-.*set --data\.cache"):
        load(root)


def test_a_cache_beside_the_images_of_a_shared_data_set_is_used(image_folder: ImageFolder, user_cache: Path) -> None:
    root = image_folder()
    images = load(root).images
    place(root).rename(root / cache.CACHE_NAME)
    (root / "train" / "cat" / "0000.png").chmod(0o444)
    assert torch.equal(load(root).images, images)
    assert not list(user_cache.glob("*/*.npy"))


def test_too_little_disk_is_said_before_anything_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"need 1000000000\.0 GB and the disk has"):
        cache.begin_array(tmp_path / "x.npy", (10**18,))
    assert not (tmp_path / "x.npy").exists()


def test_beyond_the_host_budget_the_images_stay_mapped(image_folder: ImageFolder) -> None:
    root = image_folder()
    memory, mapped = load(root), load(root, max_host_bytes=100)
    assert memory.spill is None
    assert mapped.spill == place(root)
    assert torch.equal(mapped.gather(torch.tensor([5, 0])), memory.images[[5, 0]])
    before = caches(root)[0].read_bytes()
    mapped.images[0] = 0
    assert caches(root)[0].read_bytes() == before


def test_a_subset_of_mapped_images_is_mapped_and_leaves_no_file(image_folder: ImageFolder) -> None:
    root = image_folder()
    mapped = load(root, max_host_bytes=100)
    listing = sorted(place(root).iterdir())
    part = mapped.subset(torch.tensor([4, 1]))
    assert torch.equal(part.images, mapped.images[[4, 1]])
    assert part.labels.tolist() == [1, 0]
    assert part.spill is not None
    assert sorted(place(root).iterdir()) == listing


def test_a_subset_of_mapped_images_that_cannot_be_written_is_said(image_folder: ImageFolder) -> None:
    root = image_folder()
    mapped = load(root, max_host_bytes=100)
    shutil.rmtree(place(root))
    with pytest.raises(DataError, match=r"astra_env/.*: no room for 2 images of a subset"):
        mapped.subset(torch.tensor([0, 1]))
