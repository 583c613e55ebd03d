"""Push and pull of exported folders: to another folder, or to the Hugging Face hub."""

import shutil
from pathlib import Path
from typing import Any

from astra_env.config.paths import user_path
from astra_env.errors import CheckpointError, InputError
from astra_env.export.safetensors_format import METADATA_FILE, WEIGHTS_FILE, read_safetensors

HUB = "hf:"
FILES = (WEIGHTS_FILE, METADATA_FILE, "model.onnx")


def push(folder: str | Path, destination: str, *, private: bool = False) -> str:
    """Publish an exported folder and return where it is.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``, and maybe ``model.onnx``; nothing else is sent.
        destination: ``hf:owner/name`` for the hub (with the user's own login), else a local folder.
        private: whether a repository created on the hub is private.

    Raises:
        CheckpointError: when the folder is not a whole export.
        InputError: when the hub cannot be reached or refuses, or huggingface_hub is not installed.
    """
    source = _whole(user_path("out", folder))
    present = [name for name in FILES if (source / name).is_file()]
    if not destination.startswith(HUB):
        target = user_path("push", destination)
        target.mkdir(parents=True, exist_ok=True)
        for name in present:
            shutil.copyfile(source / name, target / name)
        return str(target)
    library, errors = _hub()
    repository = destination.removeprefix(HUB)
    try:
        api = library.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(source), allow_patterns=present)
    except errors as error:
        raise InputError(f"hub: cannot push to {repository!r} ({_first_line(error)}); see 'hf auth login'") from error
    return destination


def pull(origin: str, folder: str | Path, *, revision: str | None = None) -> Path:
    """Fetch an exported folder and return the path of its ``model.safetensors``.

    Args:
        origin: ``hf:owner/name`` for the hub, else a local folder.
        folder: where the files go.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: when what is there is not a whole export.
        InputError: when the hub cannot be reached or refuses, or huggingface_hub is not installed.
    """
    target = user_path("out", folder)
    if not origin.startswith(HUB):
        push(_whole(user_path("pull", origin)), str(target))
        return target / WEIGHTS_FILE
    library, errors = _hub()
    repository = origin.removeprefix(HUB)
    try:
        library.snapshot_download(repository, revision=revision, local_dir=str(target), allow_patterns=list(FILES))
    except errors as error:
        raise InputError(f"hub: cannot pull {repository!r} ({_first_line(error)}); check name and network") from error
    return _whole(target) / WEIGHTS_FILE


def _whole(folder: Path) -> Path:
    for name in (WEIGHTS_FILE, METADATA_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: holds no {name}; write an export with scripts/export.py first")
    if read_safetensors(folder / WEIGHTS_FILE)[1] is None:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: carries no astra_env metadata; export the network again")
    return folder


def _hub() -> tuple[Any, tuple[type[Exception], ...]]:
    """Return huggingface_hub and what it raises when the network, the login or the repository is at fault."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError("hub: the package huggingface_hub is not installed; install astra-env[export]") from error
    return huggingface_hub, (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
