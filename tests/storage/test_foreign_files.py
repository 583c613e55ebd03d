"""Files of other programs: bookkeeping is read, code is refused by name, what is no checkpoint is called what it is."""

import argparse
import gzip
import io
import pathlib
import tarfile
import types
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from astra_env.errors import CheckpointError
from astra_env.export import read_safetensors
from astra_env.storage.checkpoint import decode, load_checkpoint


def bytes_of(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_bookkeeping_is_read_as_plain_values(zipped):
    history = defaultdict(list, {"loss": [np.float64(0.5), np.float32(0.25)]})
    options = argparse.Namespace(lr=0.1, steps=np.int64(3), data=pathlib.PurePosixPath("a/b"), seen=np.bool_(True))
    counts = np.arange(6, dtype=np.int32).reshape(2, 3)
    state = {"acc": np.float64(93.5), "args": options, "history": history, "counts": counts, "column": counts.T}
    state["more"] = types.SimpleNamespace(n=1)
    state["net"] = OrderedDict(weight=torch.ones(2))
    read = decode(bytes_of(state, _use_new_zipfile_serialization=zipped), "x.pt")
    assert read["acc"] == 93.5
    assert read["args"] == {"lr": 0.1, "steps": 3, "data": "a/b", "seen": True}
    assert (type(read["history"]), read["history"]) == (dict, {"loss": [0.5, 0.25]})
    assert torch.equal(read["counts"], torch.arange(6, dtype=torch.int32).view(2, 3))
    assert torch.equal(read["column"], read["counts"].T)
    assert read["more"] == {"n": 1}
    assert torch.equal(read["net"]["weight"], torch.ones(2))


def test_arrays_of_objects_are_left_out_and_never_built():
    read = decode(bytes_of({"odd": np.array([{}, None], dtype=object), "w": torch.ones(1)}), "x.pt")
    assert read["odd"] is None


class Custom:
    def __init__(self):
        self.lr = 1


def test_another_class_is_refused_by_name_with_the_remedy():
    with pytest.raises(CheckpointError, match=r"an object of .*Custom\) and could run code.*save its state_dict alone"):
        decode(bytes_of({"options": Custom(), "w": torch.ones(1)}), "x.pt")


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git-LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html><title>Google Drive</title>", "is a web page.*download the file itself"),
        (b"<html lang=en>", "is a web page"),
        (b'{"error": "Repository not found"}', "is a server's error message"),
        (tar(), "is a tar archive; unpack it"),
        (gzip.compress(tar()), "is compressed by gzip; unpack it"),
        (b"", "is empty"),
        (b"\x10" + b"\0" * 7 + b'{"w": {"dtype": "F32"}}', r"safetensors file; give it the suffix \.safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, data, said):
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"w\.pt: .*{said}") as caught:
        load_checkpoint(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_a_pointer_in_place_of_a_safetensors_file_is_called_so_too(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="Git-LFS pointer"):
        read_safetensors(tmp_path / "model.safetensors")
