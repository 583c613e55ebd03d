"""Small data sets in the layouts of the real ones."""

from pathlib import Path

import pytest
from PIL import Image
from small_images import ImageFolder, pixels


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder for decoded images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    return tmp_path / "home" / "cache" / "astra_env"


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Write ``per_class`` PNG images per class and split; image number n of all has the pixels of seed n."""

    def make(splits: tuple[str, ...] = ("train", "test"), per_class: int = 3, root: Path | None = None) -> Path:
        base = root or tmp_path / "images"
        seed = 0
        for split in splits:
            for name in ("cat", "dog"):
                folder = base / split / name
                folder.mkdir(parents=True)
                for index in range(per_class):
                    Image.fromarray(pixels(seed)).save(folder / f"{index:04}.png")
                    seed += 1
        return base

    return make
