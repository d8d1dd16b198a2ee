"""Drift: the divergence by its definition, its noise floor, and planted changes."""

import datetime as dt
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.encoding import Encoder, Vocabulary, save_encoder
from pipeline import tables
from pipeline.config import Config
from pipeline.featurize import run_folder
from pipeline.split import Days
from pipeline.watch_drift import divergence, feature_drift, jensen_shannon, prediction_drift
from pipeline.watch_lists import Copy
from pipeline.workspace import Workspace, write_json

FIRST = dt.date(2026, 1, 1)
MANY = 1e12  # rows at which what chance adds is nothing


def _counts(*shares: float, rows: float = MANY) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(shares) * rows


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.5, 0.5), (0.5, 0.5), 0.0),
        ((1.0, 0.0), (0.0, 1.0), 1.0),  # nothing in common: one bit
        # m = (3/4, 1/4): H(m) - (H(1, 0) + H(1/2, 1/2)) / 2 = 0.8113 - 0.5
        ((1.0, 0.0), (0.5, 0.5), 0.25 * math.log2(4) + 0.75 * math.log2(4 / 3) - 0.5),
    ],
)
def test_divergence_by_hand(first: tuple[float, ...], second: tuple[float, ...], expected: float) -> None:
    assert jensen_shannon(_counts(*first), _counts(*second)) == pytest.approx(expected, abs=1e-9)
    assert jensen_shannon(_counts(*second), _counts(*first)) == pytest.approx(expected, abs=1e-9)


def test_nothing_counted_has_no_divergence() -> None:
    assert math.isnan(jensen_shannon(np.zeros(3), _counts(0.2, 0.3, 0.5)))


def test_samples_of_one_distribution_have_no_divergence_on_average_whatever_their_sizes() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    for rows, others in ((200, 200), (100, 2000)):
        draws = [
            jensen_shannon(
                generator.multinomial(rows, shares).astype(np.float64),
                generator.multinomial(others, shares).astype(np.float64),
            )
            for _ in range(2000)
        ]
        bias = 3 / (8 * math.log(2)) * (1 / rows + 1 / others)  # what an uncorrected one has: 0.0054 and 0.0057
        assert abs(np.mean(draws)) < bias / 10


def test_the_floor_is_what_history_days_differ_by_from_those_before_them() -> None:
    history = np.stack([_counts(0.5, 0.5), _counts(0.5, 0.5), _counts(0.6, 0.4), _counts(0.4, 0.6)])
    found = divergence(_counts(0.55, 0.45), history, 1.0)
    apart = jensen_shannon(history[3], history[1:3].sum(axis=0))
    # the day at 0.4 against the two before it at 0.55
    m = (0.4 + 0.55) / 2
    entropy = [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (m, 0.4, 0.55)]
    assert apart == pytest.approx(entropy[0] - (entropy[1] + entropy[2]) / 2, abs=1e-9)
    assert found["floor"] == pytest.approx(apart)
    assert found["divergence"] == pytest.approx(jensen_shannon(_counts(0.55, 0.45), history[2:].sum(axis=0)))
    assert found["excess"] == found["divergence"] - found["floor"]
    assert found["excess"] < 0
    assert divergence(_counts(0.9, 0.1), history, 1.0)["excess"] > 0.1


def test_a_steady_trend_is_no_drift_and_a_jump_in_it_is() -> None:
    days = np.stack([_counts(0.2 + 0.04 * day, 0.8 - 0.04 * day) for day in range(12)])
    assert divergence(days[11], days[:11], 0.95)["excess"] < 0.001
    assert divergence(days[11], days[:8], 0.95)["excess"] > 0.01


def _encoder() -> Encoder:
    known = [f"v{number}" for number in range(60)]
    item = Vocabulary(values=known, ids=list(range(3, 63)))
    hashed = Vocabulary(values=known, ids=list(range(3, 63)), first_bucket=70, buckets=4)
    return Encoder(
        vocabularies={"item_id": item, "user_id": hashed, "tags": item},
        knots={"price": [float(number) for number in range(9)], "gone": [0.0, 1.0]},
        lists={"tags": ("tags", 3)},
        bins=8,
    )


def _examples(day: int, generator: np.random.Generator, *, drifted: bool) -> pl.DataFrame:
    rows = 3000 + 500 * (day % 3)
    item = generator.integers(3, 63, rows)
    price = generator.uniform(0, 8, rows)
    if drifted:
        item = np.where(generator.random(rows) < 0.3, 2, item)
        price = np.where(generator.random(rows) < 0.2, 9.0, price * 0.5)
    user = np.where(generator.random(rows) < (0.4 if drifted else 0.1), 71, generator.integers(3, 63, rows))
    tags = [[int(tag), 1, 0] for tag in generator.integers(3, 9, rows)]
    return pl.DataFrame(
        {
            "date": pl.repeat(FIRST + dt.timedelta(days=day), rows, eager=True),
            "item_id_code": pl.Series(item, dtype=pl.Int32),
            "user_id_code": pl.Series(user, dtype=pl.Int32),
            "tags_code": pl.Series(tags, dtype=pl.List(pl.Int32)),
            "price_position": pl.Series(price, dtype=pl.Float32),
            "gone_position": pl.Series(generator.uniform(0, 1, rows), dtype=pl.Float32),
        }
    )


class Featurized:
    """A workspace with encoded examples of seven days, the last of which has drifted or not."""

    def __init__(self, root: Path, *, drifted: bool) -> None:
        self.config = Config.model_validate({"name": "small", "source": {"interactions": "log.*"}})
        self.workspace = Workspace(root)
        dates = [FIRST + dt.timedelta(days=number) for number in range(7)]
        self.days = Days(dates[:5], [dates[5]], [dates[6]], dates[6] + dt.timedelta(days=1))
        self.folder = run_folder(self.config, self.workspace, self.days)
        generator = np.random.default_rng(1)
        frames = [_examples(number, generator, drifted=drifted and number == 6) for number in range(7)]
        table = self.workspace.table("examples")
        tables.write_days(table, frames, dates, note={})
        (self.folder / "features").mkdir(parents=True)
        write_json(self.folder / "features" / "versions.json", {"examples": tables.version(table)})
        save_encoder(_encoder(), self.folder / "features" / "encoder.json")


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Featurized:
    return Featurized(tmp_path_factory.mktemp("drifted"), drifted=True)


def test_planted_drift_is_flagged_and_what_has_not_drifted_is_not(drifted: Featurized) -> None:
    found = feature_drift(drifted.config, drifted.workspace, drifted.folder, drifted.days)
    excess = {one["column"]: one["excess"] for one in found["columns"]}
    assert found["days"] == 6
    assert min(excess["item_id"], excess["user_id"], excess["price"]) > 0.01
    assert max(excess["tags"], excess["gone"]) < 0.002
    assert [one["excess"] for one in found["columns"]] == sorted(excess.values(), reverse=True)


def test_shares_of_unseen_and_missing_values_count_hash_buckets_and_lists(drifted: Featurized) -> None:
    found = feature_drift(drifted.config, drifted.workspace, drifted.folder, drifted.days)
    shares = {one["column"]: one for one in found["shares"]}
    newest = tables.scan(drifted.workspace.table("examples")).filter(pl.col("date") == drifted.days.test[0]).collect()
    assert shares["item_id"]["unseen_newest"] == pytest.approx((newest["item_id_code"] == 2).mean())
    assert shares["user_id"]["unseen_newest"] == pytest.approx((newest["user_id_code"] == 71).mean())
    assert shares["price"]["missing_newest"] == pytest.approx((newest["price_position"] == 9).mean())
    assert shares["tags"]["missing_newest"] == pytest.approx(0.5)  # one of two tags each; padding is none
    assert shares["item_id"]["unseen_training"] == shares["price"]["missing_training"] == 0
    assert "unseen_newest" not in shares["price"]


def test_nothing_is_measured_without_four_days_of_history(drifted: Featurized) -> None:
    few = Days(drifted.days.train[:3], drifted.days.validation, drifted.days.test, drifted.days.scored_for)
    found = feature_drift(drifted.config, drifted.workspace, drifted.folder, few)
    assert found == {"reason": "3 training days: 4 are needed for a noise floor"}


def test_a_run_without_features_is_named(drifted: Featurized) -> None:
    folder = drifted.folder.with_name("2026-01-08-other")
    found = feature_drift(drifted.config, drifted.workspace, folder, drifted.days)
    assert found == {"reason": "run 2026-01-08-other has no features: `counterpoise featurize` has not ended"}


def test_a_column_that_is_new_has_no_history_to_drift_from(tmp_path: Path) -> None:
    place = Featurized(tmp_path, drifted=False)
    frames = tables.scan(place.workspace.table("examples")).collect()
    early = pl.col("date") < dt.date(2026, 1, 4)
    emptied = frames.with_columns(
        pl.when(early).then(pl.lit([0, 0, 0], pl.List(pl.Int32))).otherwise("tags_code").alias("tags_code")
    )
    tables.write_days(place.workspace.table("examples"), [emptied], place.days.all(), note={})
    write_json(place.folder / "features" / "versions.json", {"examples": 1})
    found = feature_drift(place.config, place.workspace, place.folder, place.days)
    assert found["without_values"] == ["tags"]
    assert "tags" not in {one["column"] for one in found["columns"]}


def test_large_days_are_thinned_and_give_nearly_the_same(drifted: Featurized, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.watch_drift.ROWS", 1000)
    found = feature_drift(drifted.config, drifted.workspace, drifted.folder, drifted.days)
    assert max(one["rows"] for one in found["columns"] if one["column"] != "tags") <= 1000
    assert {one["column"] for one in found["columns"] if one["excess"] > 0.01} == {"item_id", "user_id", "price"}


def _copies(root: Path, shift: float, days: int = 6) -> list[Copy]:
    generator, found = np.random.default_rng(2), []
    for number in range(days):
        folder, day = root / f"version-{number}", FIRST + dt.timedelta(days=number)
        folder.mkdir()
        scale = shift if number == days - 1 else 1.0
        values = generator.beta(2, 8, 4000) * scale
        names = ("p_click", "p_click_and_conversion", "p_conversion")
        frame = pl.DataFrame({name: values if name == "p_click" else generator.beta(2, 8, 4000) for name in names})
        frame.write_parquet(folder / "part-00000.parquet")
        record = {"scored_for": str(day), "candidates": 4000, "published_at": f"{day}T00:00:00+00:00"}
        found.append(Copy(folder, record))
    return found


def test_drift_of_the_published_predictions_is_flagged(tmp_path: Path) -> None:
    config = Config.model_validate({"name": "small", "source": {"interactions": "log.*"}})
    found = prediction_drift(config, _copies(tmp_path, 0.6))
    assert found["day"] == "2026-01-06"
    assert [one["column"] for one in found["columns"] if one["excess"] > 0.01] == ["p_click"]


def test_predictions_need_lists_of_four_earlier_days(tmp_path: Path) -> None:
    config = Config.model_validate({"name": "small", "source": {"interactions": "log.*"}})
    found = prediction_drift(config, _copies(tmp_path, 0.6, days=4))
    assert found == {"reason": "lists of 3 earlier days are kept: 4 are needed"}
