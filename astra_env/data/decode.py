"""Image files to uint8 arrays, many at a time."""

import math
import multiprocessing
import struct
import sys
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from astra_env.data.cache import begin_array
from astra_env.errors import DataError

# Everything Pillow's format plugins raise on damaged bytes.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
# Modes that Pillow's conversion to RGB would clip instead of rescaling.
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112
"""EXIF tag that says how a camera was held; 1 for upright."""
_FILES_PER_JOB = 256
_FILES_WORTH_A_PROCESS = 1024


@dataclass(frozen=True)
class _Job:
    """A run of files whose pixels go to one place in an array file."""

    files: tuple[str, ...]
    first: str
    shape: tuple[int, ...]
    image_size: int | None
    target: Path
    offset: int


@dataclass(frozen=True)
class _Done:
    """How many files a job has decoded, laid on white and turned."""

    files: int
    flattened: int
    turned: int


@dataclass(frozen=True)
class Decoded:
    """An image and what was done to it.

    Attributes:
        pixels: uint8 ``(3, H, W)``.
        flattened: it had transparent pixels, which were laid on white.
        turned: it was rotated or mirrored as its EXIF orientation says.
    """

    pixels: np.ndarray
    flattened: bool
    turned: bool


def decode(file: str, image_size: int | None) -> Decoded:
    """Return an image; with ``image_size``, its centre square resized to that side (bicubic).

    Raises:
        DataError: when the file is not an image, is damaged or truncated, or has more than 8 bits per channel.
    """
    try:
        with Image.open(file) as opened:
            if opened.mode in _DEEP_MODES:
                raise DataError(f"{file}: expected 8 bits per channel, got mode {opened.mode!r}; convert the file")
            opened.load()
            turned = opened.getexif().get(_ORIENTATION, 1) in range(2, 9)
            image = ImageOps.exif_transpose(opened) if turned else opened
            upright, flattened = _on_white(image)
            pixels = np.asarray(_square(upright, image_size))
    except UnidentifiedImageError as error:
        raise DataError(f"{file}: is not an image; remove it from the data set") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{file}: is too large to be decoded safely; remove or shrink it") from error
    except DataError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: damaged or truncated image ({reason}); replace or remove the file") from error
    return Decoded(pixels.transpose(2, 0, 1), flattened, turned)


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image as RGB and whether any of its pixels was transparent: these show a white ground."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    layered = image.convert("RGBA")
    alpha = layered.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return image.convert("RGB"), False
    ground = Image.new("RGB", image.size, "white")
    ground.paste(layered.convert("RGB"), mask=alpha)
    return ground, True


def is_image(file: str) -> bool:
    """Whether Pillow recognises the first bytes of ``file``."""
    try:
        with Image.open(file):
            return True
    except UnidentifiedImageError:
        return False
    except (*_DAMAGED, Image.DecompressionBombError):
        return True


def decode_to_array(
    files: Sequence[str], target: Path, image_size: int | None, workers: int, progress: bool, title: str
) -> None:
    """Decode ``files`` in their order into the ``.npy`` file ``target``, uint8 ``(N, 3, H, W)``, a few at a time.

    The result does not depend on ``workers``, and never lies in memory as a whole.

    Raises:
        DataError: names the first file (in order) that cannot be used, or that differs in size from the first.
    """
    shape = decode(files[0], image_size).pixels.shape
    start = begin_array(target, (len(files), *shape))
    size = min(_FILES_PER_JOB, math.ceil(len(files) / workers))
    jobs = [
        _Job(tuple(files[i : i + size]), files[0], shape, image_size, target, start + i * math.prod(shape))
        for i in range(0, len(files), size)
    ]
    pool, flattened, turned = _pool(workers, len(files)), 0, 0
    try:
        with tqdm(total=len(files), desc=title, unit="image", disable=not progress) as bar:
            for done in pool.map(_decode_job, jobs):
                bar.update(done.files)
                flattened, turned = flattened + done.flattened, turned + done.turned
    except BrokenProcessPool as error:
        raise DataError(f"{title}: a decoding process was killed, probably for memory; free some and retry") from error
    finally:
        pool.shutdown(cancel_futures=True)
    if flattened:
        warnings.warn(f"{title}: {flattened} images with transparent pixels were laid on white", stacklevel=2)
    if turned:
        warnings.warn(f"{title}: {turned} images were turned as their EXIF orientation says", stacklevel=2)


def _square(image: Image.Image, side: int | None) -> Image.Image:
    if side is None or image.size == (side, side):
        return image
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge))


def _pool(workers: int, files: int) -> Executor:
    """Processes for many files, otherwise threads.

    Small files spend most of their time under the interpreter's lock, where threads are slower than none. Forked
    children run Pillow and nothing else, so neither CUDA nor the threads of the parent matter to them; a spawned child
    would run the user's script again. A daemon, such as a worker of a vector environment, may not have children.
    """
    forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if forks and workers > 1 and files >= _FILES_WORTH_A_PROCESS:
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
    return ThreadPoolExecutor(workers)


def _decode_job(job: _Job) -> _Done:
    flattened = turned = 0
    with job.target.open("r+b") as out:
        out.seek(job.offset)
        for file in job.files:
            image = decode(file, job.image_size)
            if image.pixels.shape != job.shape:
                sizes = "{2}x{1}".format(*image.pixels.shape), "{2}x{1}".format(*job.shape)
                raise DataError(
                    f"{file}: is {sizes[0]} but {job.first} is {sizes[1]}; "
                    "set --data.image_size to bring all images to one size"
                )
            out.write(image.pixels.tobytes())
            flattened, turned = flattened + image.flattened, turned + image.turned
    return _Done(len(job.files), flattened, turned)
