"""Checkpoints: readable by torch alone, whole or refused, never run."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from fuzzing import cases, flipped
from hypothesis import given
from hypothesis import strategies as st

from astra_env.errors import CheckpointError
from astra_env.storage.checkpoint import decode, encode, load_checkpoint, save_checkpoint

STATE = {"target": {"weight": torch.arange(6.0).view(2, 3)}, "step": 3, "names": ["a", "b"], "none": None}
ENCODED = encode(STATE)


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "deep" / "last.pt", STATE)
    loaded = load_checkpoint(tmp_path / "deep" / "last.pt")
    assert torch.equal(loaded.pop("target")["weight"], STATE["target"]["weight"])
    assert loaded == {"step": 3, "names": ["a", "b"], "none": None}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.pt"]


def test_torch_reads_it_without_us(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3


def test_plain_torch_files_are_read_too(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "official.pt")
    assert load_checkpoint(tmp_path / "official.pt")["state_dict"]["w"].tolist() == [1, 1]


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    else:
        torch.save({"a": Malicious()}, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(CheckpointError, match=r"evil.pt: (refused|not a readable)"):
        load_checkpoint(path)
    assert not Path("pwned").exists()


@cases(300)
@given(position=st.integers(0, len(ENCODED) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(position, bit):
    damaged = bytearray(ENCODED)
    damaged[position] ^= 1 << bit
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        decode(bytes(damaged), "last.pt")


@cases(200)
@given(length=st.integers(0, len(ENCODED) - 1))
def test_a_torn_file_is_noticed(length):
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        decode(ENCODED[:length], "last.pt")


@cases(200)
@given(st.binary(max_size=200))
def test_garbage_is_noticed(data):
    with pytest.raises(CheckpointError):
        decode(data, "garbage.pt")


def foreign(**options):
    """The same state as other programs save it, without a digest."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer, **options)
    return buffer.getvalue()


FOREIGN = {"zip": foreign(), "legacy": foreign(_use_new_zipfile_serialization=False)}


@pytest.mark.parametrize("form", FOREIGN)
@cases(300)
@given(data=st.data())
def test_a_damaged_file_of_another_program_is_a_state_or_a_typed_error(form, data):
    """Without a digest a flip in a weight is a weight; what is certain is that nothing worse happens."""
    try:
        assert isinstance(decode(flipped(FOREIGN[form], data), "foreign.pt"), dict)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_an_archive_that_says_it_goes_on_elsewhere_is_refused():
    data = bytearray(FOREIGN["zip"])
    data[data.rindex(b"PK\x06\x07") + 4] = 1  # the number of the disk that its directory is on
    with pytest.raises(CheckpointError, match=r"foreign.pt: not a readable checkpoint \(BadZipFile\)"):
        decode(bytes(data), "foreign.pt")


@pytest.mark.timeout(60)
def test_a_file_that_unpacks_to_more_than_itself_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(FOREIGN["zip"])) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr("archive/data/9", bytes(50_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="unpacks to 50"):
        decode(buffer.getvalue(), "bomb.pt")


def test_tensors_without_their_values_are_refused():
    buffer = io.BytesIO()
    torch.save({"weight": [torch.zeros(1).expand(10**6, 10**6)]}, buffer)
    with pytest.raises(CheckpointError, match=r"holds a tensor \(1000000, 1000000\) without its values"):
        decode(buffer.getvalue(), "hollow.pt")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.pt: cannot read the checkpoint \(No such file"):
        load_checkpoint(tmp_path / "nowhere.pt")
