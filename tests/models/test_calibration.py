"""Claims about calibration: what its fits find, what they leave alone, and which file is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from models.calibration import (
    CALIBRATION_FILE,
    Calibration,
    Isotonic,
    Observed,
    Platt,
    fit_isotonic,
    fit_platt,
    load_calibration,
    log_odds,
    save_calibration,
    sigmoid,
    within_space,
)
from models.ranker import Ranker, RankerSpec
from models.serialization import weights_digest

SPEC = RankerSpec(
    body="linear",
    categorical_cardinalities={"item_id": 5},
    numeric=[],
    bins=2,
    pooled={},
    single=["item_id"],
    context=[],
    context_numeric=[],
    binary_tasks={"like": "click", "share": "conversion", "hide": "impression"},
    value_tasks={"price": "conversion", "depth": "impression"},
)
Floats = NDArray[np.float64]


def drawn(slope: float, intercept: float, *, rows: int = 200_000, seed: int = 0) -> Observed:
    """Draw labels whose log-odds are a line of the predicted ones."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-2.0, 1.2, rows)
    positives = generator.random(rows) < sigmoid(slope * logits + intercept)
    return Observed(logits, positives.astype(np.float64), np.ones(rows))


def outputs(rows: int = 4000, seed: int = 0) -> NDArray[np.float32]:
    """Draw what a ranker of SPEC may give: a chain of probabilities and means."""
    p = sigmoid(np.random.default_rng(seed).normal(-1.0, 1.5, (rows, 7)))
    both = p[:, 0] * p[:, 1]
    columns = [p[:, 0], p[:, 1], both, p[:, 0] * p[:, 2], both * p[:, 3], p[:, 4], both * p[:, 5] * 30, p[:, 6] * 9]
    return np.stack(columns, axis=1).astype(np.float32)


def test_platt_finds_the_line_that_labels_were_drawn_from() -> None:
    found = fit_platt(drawn(0.7, -0.4))
    assert found.slope == pytest.approx(0.7, abs=0.02)
    assert found.intercept == pytest.approx(-0.4, abs=0.04)


def test_platt_is_logistic_regression_on_one_number_but_for_the_slopes_prior() -> None:
    observed = drawn(1.6, 0.5, rows=2000)
    shifted = LogisticRegression(C=1.0, tol=1e-10).fit(observed.logits[:, None], observed.positives)
    found = fit_platt(observed)
    # scikit-learn's prior has its mean at 0 and ours at 1: both vanish beside 2000 rows.
    assert found.slope == pytest.approx(shifted.coef_[0, 0], abs=0.02)
    assert found.intercept == pytest.approx(shifted.intercept_[0], abs=0.04)


@pytest.mark.parametrize("rows", [30, 500, 20_000])
def test_probabilities_of_platt_sum_to_the_positives(rows: int) -> None:
    observed = drawn(0.5, 1.0, rows=rows)
    assert sigmoid(fit_platt(observed).apply(observed.logits)).sum() == pytest.approx(
        observed.positives.sum(), rel=1e-4
    )


def test_targets_above_1_give_the_line_of_the_labels_that_they_stand_for() -> None:
    whole = drawn(0.8, 0.3)
    known = np.random.default_rng(1).random(len(whole.logits)) < 0.5
    early = Observed(whole.logits, whole.positives * known / 0.5, whole.trials)
    assert early.positives.max() == 2
    found, expected = fit_platt(early), fit_platt(whole)
    assert found.slope == pytest.approx(expected.slope, abs=0.03)
    assert sigmoid(found.apply(early.logits)).sum() == pytest.approx(early.positives.sum(), rel=1e-4)


def test_rows_that_count_twice_are_two_rows() -> None:
    once = drawn(0.8, 0.3, rows=400)
    doubled = Observed(once.logits, 2 * once.positives, 2 * once.trials)
    repeated = Observed(*(np.tile(column, 2) for column in (once.logits, once.positives, once.trials)))
    assert fit_platt(doubled).slope == pytest.approx(fit_platt(repeated).slope, rel=1e-6)
    assert np.allclose(fit_isotonic(doubled).values, fit_isotonic(once).values)


def test_separable_rows_give_a_finite_slope() -> None:
    logits = np.linspace(-3, 3, 40)
    found = fit_platt(Observed(logits, (logits > 0).astype(np.float64), np.ones(40)))
    assert 1 < found.slope < 10


@pytest.mark.parametrize("offset", [-60.0, 60.0])
def test_predictions_that_are_far_off_are_brought_back(offset: float) -> None:
    observed = drawn(1.0, 0.0, rows=5000)
    moved = Observed(observed.logits + offset, observed.positives, observed.trials)
    assert sigmoid(fit_platt(moved).apply(moved.logits)).mean() == pytest.approx(observed.positives.mean(), rel=1e-4)


def test_isotonic_finds_a_curve_that_no_line_is() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(0.0, 2.0, 200_000)
    truth = sigmoid(np.where(logits < 0, 0.2, 2.0) * logits - 1)
    observed = Observed(logits, (generator.random(len(logits)) < truth).astype(np.float64), np.ones(len(logits)))
    isotonic, platt = (sigmoid(fit.apply(logits)) for fit in (fit_isotonic(observed), fit_platt(observed)))
    assert np.abs(isotonic - truth).mean() < 0.01 < np.abs(platt - truth).mean()
    assert isotonic.sum() == pytest.approx(observed.positives.sum(), rel=0.01)


def test_isotonic_ties_no_two_predictions_and_stays_between_0_and_1() -> None:
    curve = fit_isotonic(drawn(0.6, 0.2, rows=3000))
    assert len(curve.knots) > 5
    assert (np.diff(curve.knots) > 0).all()
    assert (np.diff(curve.values) > 0).all()
    given = np.linspace(-40, 40, 2001)
    made = curve.apply(given)
    assert (np.diff(made) > 0).all()
    assert (sigmoid(made) >= 0).all()
    assert (sigmoid(made) <= 1).all()


def test_blocks_of_one_class_join_their_neighbours() -> None:
    logits = np.arange(6.0)
    curve = fit_isotonic(Observed(logits, np.array([0.0, 0, 1, 0, 1, 1]), np.ones(6)))
    # Blocks 0 0 | 1 0 | 1 1 become one: the first has no positive, the last no negative.
    assert curve == Isotonic([2.5], [0.0])
    assert curve.apply(np.array([0.0, 5.0])).tolist() == [-2.5, 2.5]


def test_the_three_probabilities_agree_after_calibration() -> None:
    given = outputs()
    made = Calibration(curves={"click": Platt(0.8, 0.3), "conversion": Isotonic([-1, 1], [-2, 3])}).apply(given, SPEC)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made[:, 2], made[:, 0] * made[:, 1])
    np.testing.assert_allclose(made[:, 0], sigmoid(0.8 * log_odds(given[:, 0]) + 0.3), rtol=1e-6)


def test_outputs_of_further_tasks_follow_the_probability_of_their_space() -> None:
    given = outputs()
    made = Calibration(curves={"click": Platt(1.0, 0.5), "like": Platt(2.0, 0.1)}).apply(given, SPEC)
    for name, space in (("p_share", 2), ("expected_price", 2), ("p_like", 0)):
        column = SPEC.outputs().index(name)
        before, after = given[:, column] / given[:, space], made[:, column] / made[:, space]
        expected = sigmoid(2 * log_odds(before) + 0.1) if name == "p_like" else before
        np.testing.assert_allclose(after, expected, rtol=1e-4)
    for name in ("p_hide", "expected_depth"):
        column = SPEC.outputs().index(name)
        np.testing.assert_array_equal(made[:, column], given[:, column])


def test_a_calibration_without_curves_changes_no_bit() -> None:
    given = outputs()
    np.testing.assert_array_equal(Calibration().apply(given, SPEC), given)
    only = Calibration(curves={"hide": Platt(2.0, 0.0)}).apply(given, SPEC)
    kept = [column for column, name in enumerate(SPEC.outputs()) if name != "p_hide"]
    np.testing.assert_array_equal(only[:, kept], given[:, kept])


def test_a_probability_that_was_rounded_to_0_or_1_stays_finite() -> None:
    given = np.zeros((2, 8), dtype=np.float32)
    given[1] = 1.0
    made = Calibration(curves={"click": Platt(1.5, 0.2), "conversion": Platt(1.0, 0.0)}).apply(given, SPEC)
    assert np.isfinite(made).all()
    assert within_space(given, 3, "click").tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("method", "curve"), [("platt", Platt(0.9, 0.1)), ("isotonic", Isotonic([-1.0, 2.0], [-3.0, 1.5]))]
)
def test_a_saved_calibration_is_read_back(tmp_path: Path, method: str, curve: Platt | Isotonic) -> None:
    ranker = Ranker(SPEC)
    made = Calibration(
        method=method,
        curves={"click": curve},
        left_out={"conversion": "3 positives"},
        fitted_on={"click": {"rows": 10, "positives": 4, "pcoc": 0.9}},
        weights_sha256=weights_digest(ranker),
    )
    (tmp_path / "model").mkdir()
    save_calibration(made, tmp_path / "model" / CALIBRATION_FILE)
    assert load_calibration(tmp_path / "model" / CALIBRATION_FILE, ranker) == made
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_without_a_calibration_keeps_its_probabilities(tmp_path: Path) -> None:
    assert load_calibration(tmp_path / CALIBRATION_FILE, Ranker(SPEC)) == Calibration()


def test_a_calibration_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CALIBRATION_FILE
    save_calibration(Calibration(weights_sha256=weights_digest(Ranker(SPEC))), path)
    with pytest.raises(ValueError, match=r"fitted to other weights .* run `counterpoise calibrate` again"):
        load_calibration(path, Ranker(replace(SPEC, seed=1)))


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"method": "spline", "curves": {"click": {}}})])
def test_a_damaged_calibration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / CALIBRATION_FILE
    path.write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json cannot be read .* run `counterpoise calibrate` again"):
        load_calibration(path, Ranker(SPEC))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_cluster_of_predictions_far_from_the_others_does_not_lose_newton(share: float) -> None:
    draw = np.random.default_rng(5)
    logits = np.where(draw.random(20_000) < share, -87.0, draw.normal(-3, 1.5, 20_000))
    positives = (draw.random(20_000) < sigmoid(logits)).astype(np.float64)
    observed = Observed(logits, positives, np.ones(20_000))
    fitted = sigmoid(fit_platt(observed).apply(logits))
    assert fitted.sum() == pytest.approx(positives.sum(), rel=1e-6)
