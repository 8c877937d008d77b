"""Calibration: prices are recovered from iterations that they made, and a profile survives its file."""

from __future__ import annotations

import numpy as np
import pytest

from pikv_env.calibrate import READS, check_path, fit_prices, fold, merge_reads, save_profile, split_reads
from pikv_env.iteration_log import COLUMNS, EXTRAS, FITTED
from pikv_runtime.ledger.state import Price
from pikv_runtime.profiles import Profile, load_profile

RELATIVE = np.array([1.0, 1.2, 1.4, 1.9])


def iterations(rng, count=400):
    """Counts of iterations, and the prices that made their times."""
    features = rng.uniform(0, 50, (count, COLUMNS)) * (rng.random((count, COLUMNS)) < 0.7)
    features[:, Price.STEP] = 1
    prices = rng.uniform(1e-6, 1e-4, COLUMNS)
    prices[Price.STEP] = 5e-3
    prices[READS] = prices[Price.READ_NATIVE] * RELATIVE
    return features, prices


def test_prices_are_recovered_and_outliers_do_not_count():
    rng = np.random.default_rng(0)
    features, prices = iterations(rng)
    seconds = features @ prices * rng.normal(1, 0.01, len(features))
    seconds[rng.random(len(seconds)) < 0.05] *= 5  # interruptions
    fit = fit_prices(merge_reads(features, RELATIVE), seconds)
    found = split_reads(fit.columns, RELATIVE)
    np.testing.assert_allclose(found[: len(FITTED)], prices[: len(FITTED)], rtol=0.15, atol=2e-6)
    assert 0.1 < fit.held_out.mean() < 0.3 and not (fit.keep & fit.held_out).any()


def test_what_iterations_cannot_tell_is_not_negative():
    rng = np.random.default_rng(1)
    features, prices = iterations(rng)
    prices[Price.DECODE_TOKEN] = 0.0
    fit = fit_prices(merge_reads(features, RELATIVE), features @ prices * rng.normal(1, 0.05, len(features)))
    assert (fit.columns >= 0).all() and fit.columns[Price.DECODE_TOKEN] < 5e-6


def test_too_few_iterations_are_refused():
    with pytest.raises(ValueError, match="3 iterations were logged, at least 60"):
        fit_prices(np.ones((3, COLUMNS)), np.ones(3))


def test_extras_land_on_what_causes_them():
    columns = np.zeros(COLUMNS)
    columns[len(FITTED) + EXTRAS.index("fills")] = 1.6
    columns[len(FITTED) + EXTRAS.index("sparse")] = 0.5
    prices = fold(columns, page_tokens=16, observe_tokens=32, chunk_tokens=64)
    assert prices[Price.DECODE_TOKEN] == pytest.approx(0.1)
    assert prices[Price.PREFILL_TOKEN] == pytest.approx(1.6 / 64)
    assert prices[Price.STEP] == pytest.approx(0.5)


def test_a_profile_survives_its_file(tmp_path):
    shipped = load_profile("cpu-gloo")
    path = save_profile(Profile(**{**vars(shipped), "name": "mine"}), tmp_path / "mine.json")
    assert load_profile(str(path)).prices_s == shipped.prices_s
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]
    with pytest.raises(ValueError, match=r"must end in \.json"):
        check_path("profile.txt")


def test_the_shipped_profile_was_measured():
    shipped = load_profile("cpu-gloo")
    assert shipped.source.startswith("pikv calibrate") and shipped.fit_error < 0.3
    assert all(value > 0 for value in shipped.prices_s.values())
    reads = [shipped.prices_s[f"read_{codec}"] for codec in ("native", "bf16", "int8", "int4")]
    assert max(reads) < 5 * min(reads)
