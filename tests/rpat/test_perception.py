"""The perception analysis on networks whose perception is known."""

import json

import pytest
import torch
from torch import nn

from astra_env.data import ImageDataset
from astra_env.errors import InputError
from astra_env.strategy import Attack
from rpat.perception import STRATA, _measure, _summarise, analyse, write_perception


class Brightness(nn.Module):
    """Two classes: brighter or darker than a half, by the mean pixel, through ``curve``."""

    def __init__(self, scale=10.0, power=1):
        super().__init__()
        self.scale, self.power = nn.Parameter(torch.tensor(scale)), power

    def forward(self, images):
        level = images.flatten(1).mean(1) - 0.5
        level = level.sign() * level.abs() ** self.power
        return self.scale * torch.stack((-level, level), 1)


def flat_images(levels, labels):
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return ImageDataset("flat", "test", images, torch.tensor(labels), ("dark", "bright"))


def test_images_fall_into_three_strata_and_each_is_measured_once():
    report = analyse(
        Brightness(), flat_images([20, 120, 200, 240, 230], [1, 0, 1, 1, 1]), Attack.crossing(16 / 255, 20), points=3
    )
    assert report.counts == {"clean_wrong": 1, "broken": 1, "defended": 3}
    assert sum(report.counts.values()) == 5
    assert [report.distances["adversarial"][name].count for name in STRATA] == [1, 1, 3]


def test_an_image_wrong_on_x_stays_clean_wrong_even_when_x_prime_is_right():
    data = flat_images([120, 120], [1, 0])
    brighter = (data.images.float() / 255 + 0.1).clamp(0, 1)
    measured = _measure(Brightness(), data.images.float() / 255, data.labels, brighter, brighter, [0.0, 1.0])
    assert [STRATA[index] for index in measured["stratum"]] == ["clean_wrong", "broken"]


def test_distance_under_attack_is_the_known_one_and_noise_moves_less():
    report = analyse(Brightness(), flat_images([200, 60], [1, 0]), Attack(16 / 255, 16 / 255, 5))
    assert report.distances["adversarial"]["defended"].mean == pytest.approx((10 * 16 / 255) ** 2, rel=1e-4)
    assert report.distances["noise"]["defended"].mean < 0.2 * report.distances["adversarial"]["defended"].mean


def test_distance_is_also_given_relative_to_the_spread_of_the_clean_logits():
    data = flat_images([200], [1])
    small, large = (analyse(Brightness(scale), data, Attack(8 / 255, 8 / 255, 20)) for scale in (1.0, 100.0))
    measured = [report.distances["adversarial_relative"]["defended"].mean for report in (small, large)]
    assert measured[0] == pytest.approx(measured[1], rel=1e-3)
    assert large.distances["adversarial"]["defended"].mean > 1000 * small.distances["adversarial"]["defended"].mean


def test_empty_strata_are_reported_as_empty_and_the_claim_is_then_not_testable():
    report = analyse(Brightness(), flat_images([250, 5], [1, 0]), Attack.crossing(4 / 255, 20))
    assert report.distances["adversarial"]["broken"] is None
    assert report.claims["adversarial"].verdict == "not testable"
    assert "broken" not in report.paths
    assert "| broken | 0 | empty | empty | empty | empty |" in report.table()


def test_linear_perception_leaves_the_path_straight_and_curved_perception_does_not():
    data = flat_images([200, 220], [1, 1])
    straight, curved = (
        analyse(Brightness(power=power), data, Attack(0.2, 0.1, 20), points=5).paths["defended"] for power in (1, 3)
    )
    assert straight["distance"] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-4)
    assert max(straight["deviation"]) < 1e-4
    assert curved["deviation"][2] > 0.05
    assert curved["deviation"][0] == curved["deviation"][4] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("broken", "defended", "verdict"), [(1.0, 3.0, "holds"), (3.0, 1.0, "contradicted"), (2.0, 2.02, "undecided")]
)
def test_claim_is_decided_by_the_interval_of_the_difference(broken, defended, verdict):
    source = torch.Generator().manual_seed(0)
    noise = torch.randn(200, generator=source) * 0.3
    values = torch.cat((broken + noise[:100], defended + noise[:100]))
    names = ("adversarial", "noise", "adversarial_relative", "noise_relative")
    samples = dict.fromkeys(names, values) | {name: torch.zeros(200, 2) for name in ("distance", "deviation")}
    samples["stratum"] = torch.tensor([1] * 100 + [2] * 100)
    claim = _summarise(samples, [0.0, 1.0], {"seed": 0}).claims["adversarial"]
    assert claim.verdict == verdict
    assert claim.difference.mean == pytest.approx(broken - defended, abs=1e-5)
    half = 1.96 * (2 * noise[:100].var().item() / 100) ** 0.5
    assert claim.difference.high - claim.difference.low == pytest.approx(2 * half, rel=0.15)


def test_analysis_leaves_the_network_in_its_mode_and_repeats_itself():
    model, data = Brightness().train(), flat_images([120, 150], [0, 1])
    first, second = (analyse(model, data, Attack.crossing(8 / 255, 20), seed=3).as_dict() for _ in range(2))
    assert first == second
    assert model.training
    with pytest.raises(InputError, match="points: expected at least 2"):
        analyse(model, data, Attack.crossing(8 / 255, 20), points=1)


def test_table_data_and_figure_are_written(tmp_path):
    report = analyse(Brightness(), flat_images([120, 200, 30], [0, 1, 0]), Attack.crossing(16 / 255, 20))
    data, text, figure = write_perception(report, tmp_path, "flat images")
    assert json.loads(data.read_text())["counts"] == report.counts
    assert "failure cases are better learned" in text.read_text()
    assert figure.read_bytes()[:4] == b"\x89PNG"
