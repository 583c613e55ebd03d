"""The comparison's report: means, pairs by seed, and what it does not cover."""

import argparse
import json

import pytest

from astra_env.commands import compare_rpat as compare


def result(method, perception, seed, clean):
    scores = {"clean": clean, "pgd_20": clean / 2, "autoattack_quick": clean / 4, "training_seconds": 1.0}
    return {"method": method, "robust_perception": perception, "seed": seed, **scores}


def test_the_report_pairs_runs_by_seed_and_names_those_that_are_missing(tmp_path):
    results = [
        result("pgd_at", False, 0, 0.5),
        result("pgd_at", True, 0, 0.6),
        result("pgd_at", False, 1, 0.7),
        result("pgd_at", True, 1, 0.7),
        result("mart", False, 0, 0.3),
    ]
    options = argparse.Namespace(suite="cifar10", seeds=2, methods=["pgd_at", "mart"], out=str(tmp_path))
    compare.write_report(options, compare.SUITES["cifar10"], results)
    report = json.loads((tmp_path / "cifar10.json").read_text())
    assert report["covers"] == {
        "runs": 5,
        "of": 8,
        "missing": ["mart+rp, seed 0", "mart, seed 1", "mart+rp, seed 1"],
    }
    assert report["command"].endswith("--suite cifar10 --seeds 2 --root DIR")
    assert report["variants"]["pgd_at"]["clean"]["mean"] == pytest.approx(0.6)
    gain = report["differences"]["pgd_at"]["clean"]
    assert (gain["pairs"], gain["mean"], gain["verdict"]) == (2, pytest.approx(0.05), "undecided")
    assert "mart" not in report["differences"]
    text = (tmp_path / "cifar10.md").read_text()
    assert "**5 of 8 runs; not measured: mart+rp, seed 0; mart, seed 1; mart+rp, seed 1.**" in text
    assert "| pgd_at | 2 | 60.0 ± 14.1 |" in text
    assert (tmp_path / "cifar10.png").read_bytes()[:4] == b"\x89PNG"


def test_every_run_of_a_suite_has_the_same_budget():
    from astra_env.config.reading import load_config
    from rpat.config import PRESET_PACKAGE, RPATConfig

    for suite in compare.SUITES.values():
        settled = [
            load_config(
                RPATConfig,
                {},
                {**compare.EQUAL, **suite.overrides, "method": method, "robust_perception": perception},
                package=PRESET_PACKAGE,
            ).resolved()
            for method in compare.METHODS
            for perception in (False, True)
        ]
        budgets = {
            (c.epochs, c.batch_size, c.budget, c.optimizer.learning_rate, tuple(c.optimizer.milestones), c.network.name)
            for c in settled
        }
        assert len(budgets) == 1
