"""The two SimCLR views of every image of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from astra_env.augment.checks import check_generator, check_images
from astra_env.augment.color import color_jitter, grayscale, sample_jitter
from astra_env.augment.crop import resized_crops, sample_crops
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import InputError

# On a CPU, work in pieces that stay in its cache; a GPU wants few large kernels.
_CPU_VALUES_AT_ONCE = 400_000


@dataclass(frozen=True)
class SimCLRAugment:
    """Two independent views per image: random resized crop, mirror, colour jitter, grayscale (Chen et al., 2020).

    Views follow the distribution of torchvision's PIL transforms. They differ in one way: the jitter's operations
    are not rounded to 8 bits one by one, only their result is.

    Attributes:
        image_size: height and width of the views, in pixels.
        crop_scale: range of the crop's area as a fraction of the image's.
        crop_ratio: range of the crop's width / height.
        flip_probability: of mirroring a view left to right.
        jitter: strength of brightness, contrast, saturation (factors 1 +- strength) and hue (+- turns, at most 0.5).
        jitter_probability: of jittering a view's colours.
        grayscale_probability: of removing a view's colours.
        interpolation: of the crops, "bicubic" or "bilinear", both antialiased.
        color_first: change colours before the crop (RoCL) instead of after it.
    """

    image_size: int
    crop_scale: tuple[float, float] = (0.1, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    interpolation: str = "bicubic"
    color_first: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range."""
        if self.image_size < 1:
            raise InputError(f"augment.image_size: expected at least 1 pixel, got {self.image_size}; raise it")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"augment.crop_scale: expected 0 < low <= high <= 1, got {self.crop_scale}; change it")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise InputError(f"augment.crop_ratio: expected 0 < low <= high, got {self.crop_ratio}; change it")
        for field in ("flip_probability", "jitter_probability", "grayscale_probability"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"augment.{field}: expected a value in [0, 1], got {getattr(self, field)}; change it")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise InputError(f"augment.interpolation: expected bicubic or bilinear, got {self.interpolation!r}")
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise InputError(
                f"augment.jitter: expected 4 non-negative strengths, hue at most 0.5, got {self.jitter}; change it"
            )

    @torch.no_grad()
    def __call__(
        self, images: Tensor, generator: torch.Generator, *, first: int = 0, total: int | None = None
    ) -> Tensor:
        """Make two views of every image.

        Args:
            images: uint8 (B, 3, H, W), any device.
            generator: CPU generator; the only source of randomness.
            first: these are the images from ``first`` on of a larger batch; their views are those they would get in it.
            total: images in the larger batch; default no more than these.

        Returns:
            float32 (2B, 3, S, S) on the images' device, multiples of 1/255 in [0, 1]; rows 2k and 2k+1 show image k.

        Raises:
            InputError: wrong dtype or shape of ``images``, or a generator of another device.
        """
        check_images(images, allow_float=False)
        check_generator(generator)
        count = 2 * (total or len(images))
        height, width = images.shape[-2:]
        boxes = sample_crops(count, height, width, self.crop_scale, self.crop_ratio, generator)
        mirrored, jittered, gray = torch.rand(3, count, generator=generator) < torch.tensor(
            [[self.flip_probability], [self.jitter_probability], [self.grayscale_probability]]
        )
        order, factors = sample_jitter(count, self.jitter, generator)
        own = slice(2 * first, 2 * (first + len(images)))
        boxes, mirrored, jittered, gray = boxes[own], mirrored[own], jittered[own], gray[own]
        order, factors = order[own], factors[own]

        at_once = self._views_at_once(images)
        pieces = []
        for start in range(0, 2 * len(images), at_once):
            rows = slice(start, start + at_once)
            levels = images[rows.start // 2 : rows.stop // 2]
            if self.color_first:
                levels = levels.float().repeat_interleave(2, dim=0)
                self._color(levels, jittered[rows], gray[rows], order[rows], factors[rows])
                levels.round_()
            views = resized_crops(levels, boxes[rows], mirrored[rows], self.image_size, self.interpolation)
            if not self.color_first:
                self._color(views, jittered[rows], gray[rows], order[rows], factors[rows])
            pieces.append(views.round_().div_(255))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _color(self, levels: Tensor, jittered: Tensor, gray: Tensor, order: Tensor, factors: Tensor) -> None:
        """Jitter the chosen images' colours and remove the chosen ones', in place."""
        if any(self.jitter):
            color_jitter(levels, jittered, order, factors)
        grayscale(levels, gray)

    def _views_at_once(self, images: Tensor) -> int:
        """Even number of views to work on at a time."""
        if images.device.type != "cpu":
            return 2 * len(images)
        values = 3 * max(self.image_size**2, images.shape[-1] * images.shape[-2])
        return 2 * max(1, _CPU_VALUES_AT_ONCE // values)


def build_augment(config: ExperimentConfig, native_size: int) -> SimCLRAugment:
    """Build the augmentation of a configuration for images of ``native_size`` pixels."""
    options = config.views
    return SimCLRAugment(
        image_size=options.size or native_size,
        crop_scale=options.crop_scale,
        flip_probability=options.flip_probability,
        jitter=options.jitter,
        jitter_probability=options.jitter_probability,
        grayscale_probability=options.grayscale_probability,
        interpolation=options.interpolation,
        color_first=options.color_first,
    )
