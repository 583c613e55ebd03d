"""CIFAR, STL-10 and Tiny ImageNet in the layouts of their archives, with their own checksums."""

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image
from small_images import ImageFolder, pixels

from astra_env.data import ImageDataset, load_dataset, tiny_imagenet
from astra_env.errors import DataError

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def load(name: str, split: str, root: Path, **options: object) -> ImageDataset:
    return load_dataset(name, split, root=root, progress=False, **options)  # type: ignore[arg-type]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four training images in two batches and two test images; the checksums of torchvision's lists are theirs."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()

    def write(name: str, content: object) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return md5((base / name).read_bytes())

    def batch(first: int) -> dict[str, object]:
        rows = [pixels(seed, 32, 32).transpose(2, 0, 1).reshape(-1) for seed in (first, first + 1)]
        return {"data": np.stack(rows), "labels": [first % 10, 9]}

    names = {"data_batch_1": 0, "data_batch_2": 2, "test_batch": 4}
    sums = {name: write(name, batch(first)) for name, first in names.items()}
    meta = write("batches.meta", {"label_names": CIFAR_CLASSES})
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[n, sums[n]] for n in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": meta})
    return tmp_path


def test_cifar_pickles_are_read_with_channels_first(cifar: Path) -> None:
    train, test = load("cifar10", "train", cifar), load("cifar10", "test", cifar)
    assert torch.equal(
        train.images, torch.stack([torch.from_numpy(pixels(s, 32, 32)).permute(2, 0, 1) for s in range(4)])
    )
    assert train.images.is_contiguous()
    assert train.labels.tolist() == [0, 9, 2, 9]
    assert test.labels.tolist() == [4, 9]
    assert train.classes == tuple(CIFAR_CLASSES)


def test_cifar_is_found_in_a_folder_of_its_name_below_root(cifar: Path) -> None:
    (cifar / "data" / "cifar10").mkdir(parents=True)
    (cifar / "cifar-10-batches-py").rename(cifar / "data" / "cifar10" / "cifar-10-batches-py")
    assert len(load("cifar10", "train", cifar / "data")) == 4


def test_cifar_resizes_in_pieces_within_the_host_budget(cifar: Path) -> None:
    images = load("cifar10", "train", cifar, image_size=16).images
    mapped = load("cifar10", "train", cifar, image_size=16, max_host_bytes=100)
    assert images.shape == (4, 3, 16, 16)
    assert mapped.spill is not None
    assert torch.equal(mapped.images, images)
    expected = load("cifar10", "train", cifar).images.float().mean()
    assert abs(images.float().mean() - expected) < 2


def test_a_damaged_cifar_file_is_named(cifar: Path) -> None:
    with (cifar / "cifar-10-batches-py" / "data_batch_2").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"cifar-10-batches-py/data_batch_2: damaged .*--data\.download true"):
        load("cifar10", "train", cifar)


def test_a_half_unpacked_cifar_names_the_missing_file(cifar: Path) -> None:
    (cifar / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py/test_batch is missing.*--data\.download true"):
        load("cifar10", "train", cifar)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("stl10", "stl10_binary"),
        ("tiny_imagenet", "tiny-imagenet-200"),
    ],
)
def test_a_missing_data_set_names_its_path_and_the_flag(tmp_path: Path, name: str, path: str) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/nowhere/{path}.*--data\.download true") as caught:
        load(name, "train", tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_download_is_one_line_with_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tv.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(DataError, match=r"data\.download: cannot fetch http://127\.0\.0\.1:9/cifar\.tar\.gz"):
        load("cifar10", "train", tmp_path, download=True)


def test_cifar_as_class_folders_is_read_in_the_official_label_order(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label, name in enumerate(CIFAR_CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels(label, 32, 32)).save(tmp_path / split / name / "0000.png")
    dataset = load("cifar10", "train", tmp_path)
    assert dataset.classes == tuple(CIFAR_CLASSES)
    assert dataset.labels.tolist() == list(range(10))
    assert torch.equal(dataset.images[7], torch.from_numpy(pixels(7, 32, 32)).permute(2, 0, 1))
    assert dataset.name == "cifar10"


def test_other_class_folders_are_not_taken_for_cifar(image_folder: ImageFolder) -> None:
    with pytest.raises(DataError, match=r"expected the 10 classes of cifar10, found 2.*--data\.name folder"):
        load("cifar10", "train", image_folder())


@pytest.fixture
def stl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "stl10_binary"
    base.mkdir()
    for stem, seeds in (("train", (0, 1)), ("test", (2,)), ("unlabeled", (3, 4, 5))):
        stored = np.stack([pixels(seed, 96, 96).transpose(2, 1, 0) for seed in seeds])
        stored.tofile(base / f"{stem}_X.bin")
        if stem != "unlabeled":
            np.array([seed + 1 for seed in seeds], dtype=np.uint8).tofile(base / f"{stem}_y.bin")
    (base / "class_names.txt").write_text("airplane\nbird\ncar\n")

    def listed(names: list[str]) -> list[list[str]]:
        return [[name, md5((base / name).read_bytes())] for name in names]

    monkeypatch.setattr(tv.STL10, "train_list", listed(["train_X.bin", "train_y.bin", "unlabeled_X.bin"]))
    monkeypatch.setattr(tv.STL10, "test_list", listed(["test_X.bin", "test_y.bin"]))
    return tmp_path


def test_stl10_has_the_same_pixels_as_torchvision_and_an_unlabelled_split(stl: Path) -> None:
    for split, theirs in (("pretrain", "unlabeled"), ("train", "train"), ("test", "test")):
        ours, reference = load("stl10", split, stl), tv.STL10(str(stl), split=theirs)
        assert torch.equal(ours.images, torch.from_numpy(np.ascontiguousarray(reference.data)))
        assert ours.labels.tolist() == list(reference.labels)
        assert ours.classes == ("airplane", "bird", "car")
    assert load("stl10", "pretrain", stl, image_size=32).images.shape == (3, 3, 32, 32)


def test_chosen_images_of_an_archive_are_those_of_the_whole(stl: Path, cifar: Path) -> None:
    for name, split, options in (("stl10", "pretrain", {}), ("cifar10", "train", {"image_size": 16})):
        part = load(name, split, stl, choose=lambda whole: torch.tensor([1, 2]), **options)
        whole = load(name, split, stl, **options)
        assert torch.equal(part.images, whole.images[1:3])
        assert torch.equal(part.labels, whole.labels[1:3])
        assert part.total == len(whole)


def test_a_damaged_stl10_file_is_named_and_nothing_is_cached(stl: Path) -> None:
    with (stl / "stl10_binary" / "unlabeled_X.bin").open("ab") as file:
        file.write(bytes(27648))
    with pytest.raises(DataError, match=r"stl10_binary/unlabeled_X\.bin: damaged"):
        load("stl10", "pretrain", stl)
    assert not list(stl.rglob("*.npy"))
    assert len(load("stl10", "train", stl)) == 2


def tiny_archive(extra: str | None = None) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        top = "tiny-imagenet-200"
        archive.writestr(f"{top}/wnids.txt", "n02\nn01\n")
        seeds = iter(range(100))

        def image(path: str) -> None:
            file = io.BytesIO()
            Image.fromarray(pixels(next(seeds), 64, 64)).save(file, "PNG")
            archive.writestr(f"{top}/{path}", file.getvalue())

        for wnid in ("n01", "n02"):
            archive.writestr(f"{top}/train/{wnid}/{wnid}_boxes.txt", "x\t0\t0\t1\t1\n")
            for index in range(2):
                image(f"train/{wnid}/images/{wnid}_{index}.JPEG")
        for index in range(3):
            image(f"val/images/val_{index}.JPEG")
        notes = [f"val_{index}.JPEG\t{wnid}\t0\t0\t1\t1\n" for index, wnid in ((2, "n01"), (0, "n02"), (1, "n01"))]
        archive.writestr(f"{top}/val/val_annotations.txt", "".join(notes))
        if extra:
            archive.writestr(extra, "escaped")
    return data.getvalue()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    with zipfile.ZipFile(io.BytesIO(tiny_archive())) as archive:
        archive.extractall(root)
    return root


def test_tiny_imagenet_is_read_in_its_own_layout_with_the_annotations(tiny: Path) -> None:
    train, test = load("tiny_imagenet", "train", tiny), load("tiny_imagenet", "test", tiny)
    assert train.classes == test.classes == ("n01", "n02")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.images.shape == (4, 3, 64, 64)
    assert test.labels.tolist() == [1, 0, 0]
    assert torch.equal(test.images[0], torch.from_numpy(pixels(4, 64, 64)).permute(2, 0, 1))
    assert len(load("tiny_imagenet", "train", tiny / "tiny-imagenet-200")) == 4


def test_inconsistent_tiny_imagenet_is_named(tiny: Path) -> None:
    base = tiny / "tiny-imagenet-200"
    notes = base / "val" / "val_annotations.txt"
    good = notes.read_text()
    notes.write_text(good.replace("val_0.JPEG\tn02", "val_0.JPEG\tn99"))
    with pytest.raises(DataError, match=r"val_annotations\.txt: .*n99"):
        load("tiny_imagenet", "test", tiny)
    notes.write_text(good.replace("val_0.JPEG", "../../secret.JPEG"))
    with pytest.raises(DataError, match=r"do not match for \.\./\.\./secret\.JPEG"):
        load("tiny_imagenet", "test", tiny)
    notes.unlink()
    with pytest.raises(DataError, match=r"val_annotations\.txt: cannot be read"):
        load("tiny_imagenet", "test", tiny)
    (base / "train" / "n02" / "images").rename(base / "train" / "n02" / "pictures")
    with pytest.raises(DataError, match=r"train/n02/images: cannot be read"):
        load("tiny_imagenet", "train", tiny)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A local web server: its address and the files it serves."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[self.path])))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files[self.path])

        def log_message(self, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", files
    httpd.shutdown()
    httpd.server_close()


def serve_tiny(
    server: tuple[str, dict[str, bytes]], archive: bytes, monkeypatch: pytest.MonkeyPatch, checksum: str | None = None
) -> None:
    address, files = server
    files["/tiny.zip"] = archive
    monkeypatch.setattr(tiny_imagenet, "URL", f"{address}/tiny.zip")
    monkeypatch.setattr(tiny_imagenet, "MD5", checksum or md5(archive))


def test_tiny_imagenet_downloads_and_unpacks(
    tmp_path: Path, server: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_tiny(server, tiny_archive(), monkeypatch)
    assert len(load("tiny_imagenet", "train", tmp_path, download=True)) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "tiny-imagenet-200", "tiny-imagenet-200.zip"]


def test_an_archive_with_another_checksum_is_not_unpacked(
    tmp_path: Path, server: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_tiny(server, tiny_archive(), monkeypatch, checksum="0" * 32)
    with pytest.raises(DataError, match=r"data\.download: cannot fetch http://.*corrupted"):
        load("tiny_imagenet", "train", tmp_path, download=True)
    assert not (tmp_path / "tiny-imagenet-200").exists()


@pytest.mark.parametrize("member", ["../../escaped.txt", "/tmp/../escaped.txt"])
def test_no_member_of_a_zip_archive_escapes(
    tmp_path: Path, server: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    serve_tiny(server, tiny_archive(extra=member), monkeypatch)
    root = tmp_path / "a" / "b" / "c"
    load("tiny_imagenet", "train", root, download=True)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not Path("/escaped.txt").exists()


def test_no_member_of_a_cifar_archive_escapes(
    tmp_path: Path, server: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        member = tarfile.TarInfo("../../escaped.txt")
        member.size = 7
        archive.addfile(member, io.BytesIO(b"escaped"))
    address, files = server
    files["/cifar.tar.gz"] = data.getvalue()
    monkeypatch.setattr(tv.CIFAR10, "url", f"{address}/cifar.tar.gz")
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", md5(data.getvalue()))
    root = tmp_path / "a" / "b" / "c"
    with pytest.raises(DataError, match=r"data\.download: cannot fetch"):
        load("cifar10", "train", root, download=True)
    assert not list(tmp_path.rglob("escaped.txt"))
