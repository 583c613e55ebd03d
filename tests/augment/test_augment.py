"""SimCLR views and supervised augmentation against torchvision's transforms, on real images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from astra_env.augment import PaddedCropAugment, SimCLRAugment, cutmix, cutout, random_crop_flip
from astra_env.augment.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, color_jitter, grayscale, sample_jitter
from astra_env.augment.crop import resized_crops, sample_crops
from astra_env.errors import InputError

STILL = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
PLAIN = {"flip_probability": 0.0, "jitter_probability": 0.0, "grayscale_probability": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cut_patches(size: int, count: int) -> Tensor:
    """Patches of scikit-learn's two bundled photographs, spread over both, uint8 (count, 3, size, size)."""
    photographs = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    grid = torch.cat([p.unfold(1, size, size).unfold(2, size, size).flatten(1, 2).transpose(0, 1) for p in photographs])
    return grid[torch.linspace(0, len(grid) - 1, count).long()].contiguous()


@pytest.fixture(scope="module")
def patches() -> Tensor:
    return cut_patches(32, 64)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


# --- the whole pipeline -----------------------------------------------------------------------------------------------


def view_statistics(views: Tensor) -> Tensor:
    """Per view: channel means and variances, mean saturation, horizontal and vertical roughness; (N, 9)."""
    chroma = (views.amax(1) - views.amin(1)).mean((1, 2))
    horizontal = views.diff(dim=3).square().mean((1, 2, 3)).sqrt()
    vertical = views.diff(dim=2).square().mean((1, 2, 3)).sqrt()
    columns = [*views.mean((2, 3)).unbind(1), *views.var((2, 3)).unbind(1), chroma, horizontal, vertical]
    return torch.stack(columns, dim=1)


def test_views_have_the_statistics_of_torchvisions_pil_pipeline() -> None:
    images = cut_patches(48, 40)
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.1, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.ToTensor(),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rounds = [torch.stack([pipeline(image) for image in map(to_pil, images)]) for _ in range(80)]
    expected = view_statistics(torch.cat(rounds))
    augment, generator = SimCLRAugment(32), seeded()
    found = view_statistics(torch.cat([augment(images, generator) for _ in range(200)]))

    error = (found.var(0) / len(found) + expected.var(0) / len(expected)).sqrt()
    # The reference truncates to 8 bits after every blend, which darkens a jittered view by up to 1.5 levels.
    allowance = torch.tensor([1.5 / 255] * 3 + [0.0] * 6)
    assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error + allowance).all()
    # The spread between views, not only their average: random factors and boxes vary as much as the reference's.
    assert ((found.std(0) / expected.std(0) - 1).abs() < 0.06).all()


def test_rates_of_flip_jitter_and_grayscale_are_the_configured_ones(patches: Tensor) -> None:
    images = patches[[40]].expand(2000, -1, -1, -1)
    original = images[:1].float() / 255
    views = SimCLRAugment(32, **STILL, **PLAIN | {"flip_probability": 0.5})(images, seeded())
    same = (views == original).flatten(1).all(1)
    mirrored = (views == original.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (mirrored[::2] & mirrored[1::2]).float().mean().item() == pytest.approx(0.25, abs=0.04)

    views = SimCLRAugment(32, **STILL, **PLAIN | {"jitter_probability": 0.8})(images, seeded())
    changed = (views != original).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.025)

    views = SimCLRAugment(32, **STILL, **PLAIN | {"grayscale_probability": 0.2})(images, seeded())
    gray = ((views[:, 0] == views[:, 1]) & (views[:, 1] == views[:, 2])).flatten(1).all(1)
    assert gray.float().mean().item() == pytest.approx(0.2, abs=0.025)
    assert (views[~gray] == original).all()


def test_flip_jitter_and_grayscale_are_drawn_independently(patches: Tensor) -> None:
    images = patches[[40]].expand(2000, -1, -1, -1)
    views = SimCLRAugment(32, **STILL, jitter=(0.0, 0.0, 0.0, 0.1))(images, seeded())
    # Without blends the hue shift keeps the maximum of the channels, so both orientations stay recognisable.
    value = images[:1].float().amax(1) / 255
    gray = (views[:, 0] == views[:, 2]).flatten(1).all(1)
    upright = (views.amax(1) - value).abs().flatten(1).amax(1) < 0.01
    mirrored = (views.amax(1) - value.flip(2)).abs().flatten(1).amax(1) < 0.01
    assert (upright ^ mirrored)[~gray].all()
    assert mirrored[~gray].float().mean().item() == pytest.approx(0.5, abs=0.03)
    untouched = (views == images[:1].float() / 255).flatten(1).all(1)
    assert untouched.float().mean().item() == pytest.approx(0.5 * 0.2 * 0.8, abs=0.02)


def test_rows_2k_and_2k_plus_1_are_views_of_image_k() -> None:
    colours = torch.tensor([[200, 30, 60], [20, 120, 240], [90, 250, 10], [0, 0, 255], [130, 130, 0]])
    images = colours.to(torch.uint8).view(5, 3, 1, 1).expand(-1, -1, 16, 16)
    views = SimCLRAugment(16, jitter_probability=0.0, grayscale_probability=0.0)(images, seeded())
    expected = (colours.float() / 255).repeat_interleave(2, dim=0).view(10, 3, 1, 1)
    assert torch.equal(views, expected.expand(-1, -1, 16, 16))


def test_views_are_float32_on_the_8_bit_grid_inside_the_box(patches: Tensor) -> None:
    views = SimCLRAugment(32)(patches, seeded())
    assert views.dtype == torch.float32
    assert views.shape == (128, 3, 32, 32)
    assert torch.equal(views, (views * 255).round().to(torch.uint8).float() / 255)
    assert views.unique().numel() > 200


def test_generator_alone_decides_the_views(patches: Tensor) -> None:
    augment = SimCLRAugment(32)
    before = torch.get_rng_state()
    first = augment(patches, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(augment(patches, seeded(3)), first)
    assert not torch.equal(augment(patches, seeded(4)), first)
    generator = seeded(3)
    augment(patches, generator)
    assert not torch.equal(augment(patches, generator), first)


def test_equal_images_get_different_views(patches: Tensor) -> None:
    views = SimCLRAugment(32)(patches[[40]].expand(20, -1, -1, -1), seeded())
    assert len(views.flatten(1).unique(dim=0)) == 40


def test_a_batch_worked_in_pieces_equals_the_batch_at_once(patches: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = SimCLRAugment(32)
    whole = augment(patches, seeded())
    monkeypatch.setattr("astra_env.augment.simclr._CPU_VALUES_AT_ONCE", 5 * 3072)
    pieces = augment(patches, seeded())
    assert len(pieces) == len(whole)
    # Another batch shape may sum in another order and move a tie by one level.
    assert (pieces - whole).abs().max() <= 1.01 / 255
    assert (pieces == whole).float().mean() > 0.999


def test_memory_format_and_autocast_do_not_change_the_views(patches: Tensor) -> None:
    augment = SimCLRAugment(32)
    expected = augment(patches, seeded())
    assert torch.equal(augment(patches.to(memory_format=torch.channels_last), seeded()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(patches, seeded()), expected)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    height=st.integers(1, 41),
    width=st.integers(1, 41),
    size=st.integers(1, 37),
    seed=st.integers(0, 2**31),
)
def test_any_image_size_gives_finite_views_in_the_box(
    batch: int, height: int, width: int, size: int, seed: int
) -> None:
    generator = seeded(seed)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    views = SimCLRAugment(size)(images, generator)
    assert views.shape == (2 * batch, 3, size, size)
    assert ((views >= 0) & (views <= 1)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_makes_the_views_of_the_cpu(patches: Tensor) -> None:
    augment = SimCLRAugment(32)
    on_cpu = augment(patches, seeded())
    augment(patches.cuda(), seeded())
    torch.cuda.set_sync_debug_mode("error")
    try:
        images = patches.pin_memory().to("cuda", non_blocking=True)
        on_cuda = augment(images, seeded())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert on_cuda.device.type == "cuda"
    difference = (on_cuda.cpu() - on_cpu).abs()
    assert difference.max() <= 2.01 / 255
    assert (difference > 0).float().mean() < 0.01


# --- crops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    scale, ratio = (0.1, 1.0), (3 / 4, 4 / 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        draw = transforms.RandomResizedCrop.get_params
        expected = torch.tensor([draw(image, list(scale), list(ratio)) for _ in range(3000)], dtype=torch.float64)
    found = sample_crops(20_000, height, width, scale, ratio, seeded()).double()

    def summaries(boxes: Tensor) -> list[Tensor]:
        top, left, h, w = boxes.unbind(1)
        return [h * w, w / h, top, left, top / (height - h + 1), left / (width - w + 1)]

    for mine, theirs in zip(summaries(found), summaries(expected), strict=True):
        assert ks_2samp(mine.numpy(), theirs.numpy()).pvalue > 1e-3
    area = (found[:, 2] * found[:, 3]) / (height * width)
    assert area.min() >= 0.08
    assert area.max() <= 1
    assert ((found[:, 0] + found[:, 2] <= height) & (found[:, 1] + found[:, 3] <= width)).all()


@pytest.mark.parametrize(("height", "width"), [(8, 64), (64, 8), (31, 97)])
def test_impossible_crops_fall_back_to_torchvisions_central_crop(height: int, width: int) -> None:
    scale, ratio = (0.9, 1.0), (3 / 4, 4 / 3)
    expected = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), list(scale), list(ratio))
    assert sample_crops(3, height, width, scale, ratio, seeded()).tolist() == [list(expected)] * 3


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("image_size", "size"), [(32, 32), (64, 32), (47, 20), (20, 47)])
def test_resized_crops_equal_pils_antialiased_filters(image_size: int, size: int, interpolation: str) -> None:
    images = cut_patches(image_size, 24)[:, :, : image_size - 3]
    boxes = sample_crops(48, image_size - 3, image_size, (0.1, 1.0), (3 / 4, 4 / 3), seeded())
    mirrored = torch.arange(48) % 3 == 0
    found = resized_crops(images, boxes, mirrored, size, interpolation)
    for row, (box, mirror) in enumerate(zip(boxes.tolist(), mirrored.tolist(), strict=True)):
        expected = reference.resized_crop(
            to_pil(images[row // 2]), *box, size=[size, size], interpolation=InterpolationMode(interpolation)
        )
        expected = from_pil(reference.hflip(expected) if mirror else expected)
        difference = (found[row] - expected).abs()
        assert difference.max() <= 1
        ties = 0.05 if interpolation == "bicubic" else 0.08
        assert (difference > 0).float().mean() < ties


def test_colours_change_before_the_crop_when_asked_to(patches: Tensor) -> None:
    """One crop of half the image: its contrast is then measured on the whole image, not on the crop."""
    augment = SimCLRAugment(
        32, crop_scale=(0.2, 0.4), jitter=(0.0, 0.9, 0.0, 0.0), jitter_probability=1.0, grayscale_probability=0.0,
        flip_probability=0.0, color_first=True,
    )  # fmt: skip
    found, after = (
        SimCLRAugment(**{**vars(augment), "color_first": first})(patches, seeded()) for first in (True, False)
    )
    generator = seeded()
    boxes = sample_crops(2 * len(patches), 32, 32, (0.2, 0.4), (3 / 4, 4 / 3), generator)
    torch.rand(3, 2 * len(patches), generator=generator)
    _, factors = sample_jitter(2 * len(patches), augment.jitter, generator)
    for row, (box, factor) in enumerate(zip(boxes.tolist(), factors[:, CONTRAST].tolist(), strict=True)):
        changed = reference.adjust_contrast(patches[row // 2].float() / 255, factor).mul(255).round().byte()
        expected = reference.resized_crop(to_pil(changed), *box, size=[32, 32], interpolation=InterpolationMode.BICUBIC)
        difference = (found[row] * 255 - from_pil(expected)).abs()
        assert difference.max() <= 2
        assert (difference > 0).float().mean() < 0.1
    assert (found - after).abs().mean() > 1 / 255


def test_weak_views_are_torchvisions_padded_crops_and_mirrors(patches: Tensor) -> None:
    views = PaddedCropAugment(32)(patches, seeded())
    assert views.shape == (128, 3, 32, 32)
    seen = set()
    for row, view in enumerate(views):
        padded = torch.nn.functional.pad(patches[row // 2].float() / 255, (4, 4, 4, 4))
        found = [
            (top, left, mirrored)
            for mirrored in (False, True)
            for top in range(9)
            for left in range(9)
            if torch.equal((view.flip(2) if mirrored else view), padded[:, top : top + 32, left : left + 32])
        ]
        assert len(found) == 1, "a view is exactly one shift, mirrored or not"
        seen.add(found[0])
    assert len(seen) > 60
    assert 40 < sum(mirrored for *_, mirrored in seen) < 88


def test_weak_views_keep_their_padding_in_proportion_and_can_be_resized(patches: Tensor) -> None:
    small = PaddedCropAugment(16, flip_probability=0.0)(patches[:, :, :16, :16], seeded())
    padded = torch.nn.functional.pad(patches[0, :, :16, :16].float() / 255, (2, 2, 2, 2))
    shifts = [padded[:, top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    assert any(torch.equal(small[0], shift) for shift in shifts)
    assert PaddedCropAugment(20)(patches, seeded()).shape == (128, 3, 20, 20)
    with pytest.raises(InputError, match="first, total: expected the whole batch of 64 images"):
        PaddedCropAugment(32)(patches, seeded(), first=0, total=128)


def test_another_interpolation_is_named() -> None:
    with pytest.raises(InputError, match=r"augment.interpolation: expected bicubic or bilinear, got 'nearest'"):
        SimCLRAugment(32, interpolation="nearest")


# --- colour -----------------------------------------------------------------------------------------------------------

ADJUST = {
    BRIGHTNESS: reference.adjust_brightness,
    CONTRAST: reference.adjust_contrast,
    SATURATION: reference.adjust_saturation,
    HUE: reference.adjust_hue,
}


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_colour_operation_equals_torchvisions_on_floats(operation: int, patches: Tensor) -> None:
    low, high = (-0.5, 0.5) if operation == HUE else (0.0, 2.0)
    factor = torch.linspace(low, high, len(patches))
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(patches), 1)
    factors[:, operation] = factor
    levels = patches.float()
    color_jitter(levels, torch.ones(len(patches), dtype=torch.bool), torch.arange(4).repeat(len(patches), 1), factors)
    for image, found, f in zip(patches, levels, factor.tolist(), strict=True):
        torch.testing.assert_close(found / 255, ADJUST[operation](image.float() / 255, f), atol=1e-5, rtol=0)


def test_colour_jitter_follows_each_images_own_order_and_factors(patches: Tensor) -> None:
    order, factors = sample_jitter(len(patches), (0.8, 0.8, 0.8, 0.4), seeded())
    assert len(order.unique(dim=0)) > 15
    chosen = torch.arange(len(patches)) % 4 > 0
    levels = patches.float()
    color_jitter(levels, chosen, order, factors)
    for row, image in enumerate(patches):
        expected = image.float() / 255
        for operation in order[row].tolist() if chosen[row] else []:
            expected = ADJUST[operation](expected, factors[row, operation].item())
        torch.testing.assert_close(levels[row] / 255, expected, atol=3e-5, rtol=0)


def test_jitter_factors_and_orders_are_uniform_over_their_ranges() -> None:
    order, factors = sample_jitter(24_000, (0.4, 0.3, 1.5, 0.1), seeded())
    low, high = torch.tensor([0.6, 0.7, 0.0, -0.1]), torch.tensor([1.4, 1.3, 2.5, 0.1])
    width = high - low
    assert ((factors >= low - 1e-6) & (factors <= high + 1e-6)).all()
    assert ((factors.mean(0) - (low + high) / 2).abs() < 0.01 * width).all()
    assert ((factors.std(0) - width / math.sqrt(12)).abs() < 0.01 * width).all()
    counts = order.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000).abs() < 150).all()


def test_grayscale_changes_only_the_chosen_images(patches: Tensor) -> None:
    levels = patches.float()
    chosen = torch.arange(len(patches)) % 2 == 0
    grayscale(levels, chosen)
    assert torch.equal(levels[~chosen], patches[~chosen].float())
    expected = reference.rgb_to_grayscale(patches[chosen].float(), num_output_channels=3)
    torch.testing.assert_close(levels[chosen], expected)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "torch.float32"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(2, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\(0, 3, 8, 8\)"),
    ],
)
def test_images_of_another_dtype_or_shape_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=rf"^images: expected .*{message}"):
        SimCLRAugment(8)(images, seeded())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_ratio", (2.0, 1.0)),
        ("flip_probability", 1.5),
        ("jitter_probability", -0.1),
        ("grayscale_probability", float("nan")),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("jitter", (-0.1, 0.4, 0.4, 0.1)),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^augment\.{field}: expected"):
        SimCLRAugment(**{"image_size": 8, field: value})


# --- supervised augmentation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "pad_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_random_crop_flip_gives_windows_of_the_padded_image(mode: str, pad_mode: str, patches: Tensor) -> None:
    images = patches[:8, :, :12, :10].repeat(50, 1, 1, 1)
    found = random_crop_flip(images, seeded(), padding=2, padding_mode=mode)
    padded = torch.nn.functional.pad(images.float() / 255, (2, 2, 2, 2), mode=pad_mode)
    windows = padded.unfold(2, 12, 1).unfold(3, 10, 1).permute(2, 3, 0, 1, 4, 5).flatten(0, 1)
    candidates = torch.cat([windows, windows.flip(-1)])
    matches = (candidates == found).flatten(2).all(2)
    assert (matches.sum(0) == 1).all()
    used = matches.float().mean(1)
    assert (used > 0).all()
    assert used[25:].sum().item() == pytest.approx(0.5, abs=0.08)


def test_random_crop_flip_without_padding_and_flip_only_scales(patches: Tensor) -> None:
    expected = patches.float() / 255
    assert torch.equal(random_crop_flip(patches, seeded(), padding=0, flip=False), expected)
    assert torch.equal(random_crop_flip(expected, seeded(), padding=0, flip=False), expected)


def test_random_crop_flip_is_decided_by_the_generator(patches: Tensor) -> None:
    before = torch.get_rng_state()
    first = random_crop_flip(patches, seeded(1))
    assert torch.equal(random_crop_flip(patches, seeded(1)), first)
    assert not torch.equal(random_crop_flip(patches, seeded(2)), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"padding": -1}, "padding"),
        ({"padding": 32, "padding_mode": "reflect"}, "padding"),
        ({"padding_mode": "edge"}, "padding_mode"),
    ],
)
def test_random_crop_flip_refuses_padding_it_cannot_make(arguments: dict, field: str, patches: Tensor) -> None:
    with pytest.raises(InputError, match=rf"^{field}: expected"):
        random_crop_flip(patches, seeded(), **arguments)


@pytest.mark.parametrize("size", [5, 6])
def test_cutout_blackens_one_square_whose_centre_is_uniform(size: int) -> None:
    images = torch.ones(4000, 3, 12, 10)
    hole = cutout(images, seeded(), size) == 0
    assert torch.equal(hole[:, 0], hole[:, 1])
    assert torch.equal(hole[:, 0], hole[:, 2])
    hole = hole[:, 0]
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows.unsqueeze(2) & columns.unsqueeze(1))
    assert rows.sum(1).max() == columns.sum(1).max() == size
    # With a uniform centre a pixel deep inside is hit with probability size^2 / (H W), a corner less.
    assert hole[:, 6, 5].float().mean().item() == pytest.approx(size**2 / 120, abs=0.03)
    assert hole[:, 0, 0].float().mean().item() == pytest.approx((size // 2 + 1) ** 2 / 120, abs=0.03)
    assert images.min() == 1


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_labels_are_the_shares_of_the_pixels(alpha: float) -> None:
    images = torch.arange(6).float().view(6, 1, 1, 1).expand(-1, 3, 12, 10).contiguous()
    labels = torch.arange(6)
    generator, kept = seeded(), []
    for _ in range(200):
        mixed, soft = cutmix(images, labels, generator, alpha, num_classes=8)
        shares = torch.nn.functional.one_hot(mixed[:, 0].long(), 8).float().mean((1, 2))
        torch.testing.assert_close(soft, shares)
        kept.append(soft.diagonal().min().item())
    assert torch.equal(images[:, 0, 0, 0], labels.float())
    assert min(kept) < 0.2
    assert max(kept) > 0.95


def test_cutmix_lambda_follows_its_beta_distribution() -> None:
    images, labels, generator = torch.zeros(2, 3, 64, 64), torch.tensor([0, 1]), seeded()
    heights = []
    for _ in range(4000):
        mixed, _ = cutmix(torch.stack([images[0], images[0] + 1]), labels, generator, 1.0, 2)
        heights.append((mixed[0, 0] == 1).any(1).sum().item() / 64)
    # Reference: the published procedure, sampled by numpy. Partners may coincide, then nothing shows: drop those.
    random = np.random.default_rng(0)
    side, center = np.floor(64 * np.sqrt(1 - random.beta(1, 1, 8000))), random.integers(0, 64, 8000)
    clipped = np.clip(center + side // 2, 0, 64) - np.clip(center - side // 2, 0, 64)
    shown = np.array([h for h in heights if h > 0])
    assert shown.mean() == pytest.approx((clipped / 64)[clipped > 0].mean(), abs=0.03)


@pytest.mark.parametrize(
    ("alpha", "labels", "field"),
    [(0.0, torch.zeros(64, dtype=torch.int64), "alpha"), (1.0, torch.zeros(3, dtype=torch.int64), "labels")],
)
def test_cutmix_refuses_bad_alpha_and_labels(alpha: float, labels: Tensor, field: str, patches: Tensor) -> None:
    with pytest.raises(InputError, match=rf"^{field}: expected"):
        cutmix(patches, labels, seeded(), alpha, 10)
