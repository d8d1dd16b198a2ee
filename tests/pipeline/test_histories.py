"""What the sequence source reads of a user: only what was known, in order; and what it is to predict."""

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.sequence import FIRST_KNOWN
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.histories import LENGTH, Coding, encode_histories, histories, training_pairs
from pipeline.semantic_ids import SemanticIds, semantic_ids_of

DAY = dt.date(2026, 1, 3)
START = dt.datetime(2026, 1, 3, tzinfo=dt.UTC)
CONFIG = Config.model_validate({"name": "x", "source": {"interactions": "*"}})
PLAN = plan_of(CONFIG)
ITEMS = pl.Series("item_id", ["a", "b", "c", "d"])


@pytest.fixture(scope="module")
def ids() -> SemanticIds:
    return semantic_ids_of(ITEMS, np.eye(4, dtype=np.float32), levels=1, centres=2, seed=0)


def _row(user: str, item: str, click: dt.datetime | None, conversion: dt.datetime | None = None) -> dict[str, object]:
    shown = click or START
    return {
        "user_id": user,
        "item_id": item,
        "date": shown.date(),
        "event_time": shown,
        "click": click is not None,
        "conversion": conversion is not None,
        "click_known_at": click,
        "click_counted_at": click,
        "conversion_known_at": conversion,
        "conversion_counted_at": conversion,
    }


def _frame(*rows: dict[str, object]) -> pl.DataFrame:
    times = dict.fromkeys(
        ("click_known_at", "click_counted_at", "conversion_known_at", "conversion_counted_at"),
        pl.Datetime("us", "UTC"),
    )
    return pl.DataFrame(list(rows), schema_overrides=times)


def _hours(hours: float) -> dt.datetime:
    return START + dt.timedelta(hours=hours)


def test_only_clicks_and_conversions_known_before_the_day_are_read_newest_last() -> None:
    frame = _frame(
        _row("u", "b", _hours(-1), _hours(0)),
        _row("u", "a", _hours(-50), _hours(-49)),
        _row("u", "c", _hours(0)),
        _row("u", "d", None),
        _row("v", "c", _hours(3)),
    )
    found = histories(frame.lazy(), PLAN, DAY)
    assert found["user_id"].to_list() == ["u"]
    assert found["items"].to_list() == [["a", "b"]]
    assert found["converted"].to_list() == [[True, False]]
    assert found["age_days"].to_list() == [[pytest.approx(50 / 24), pytest.approx(1 / 24)]]


def test_the_last_actions_are_kept() -> None:
    frame = _frame(*(_row("u", f"i{n:02d}", _hours(-40 + n)) for n in range(LENGTH + 3)))
    assert histories(frame.lazy(), PLAN, DAY)["items"].to_list() == [[f"i{n:02d}" for n in range(3, LENGTH + 3)]]


def test_an_action_is_written_as_digits_kind_and_age_and_an_unknown_item_leaves_the_last_two(ids: SemanticIds) -> None:
    frame = _frame(
        _row("u", "b", _hours(-1)),
        _row("u", "a", _hours(-24 * 5), _hours(-24 * 4)),
        _row("w", "new", _hours(-24 * 999)),
    )
    coding = Coding(ids)
    users = pl.Series(["w", "nobody", "u"])
    found = encode_histories(histories(frame.lazy(), PLAN, DAY), users, coding)
    digits = ids.digits_of(ITEMS) + FIRST_KNOWN + np.array([0, ids.sizes[0]])
    kind = FIRST_KNOWN + sum(ids.sizes)
    age = kind + 2
    assert found[2].tolist() == [[*digits[0], kind + 1, age + 3], [*digits[1], kind, age]]
    assert found[0].tolist() == [[0, 0, kind, age + 7], [0, 0, 0, 0]]
    assert not found[1].any()
    assert int(found.max()) < coding.source_vocabulary
    assert encode_histories(histories(frame.lazy(), PLAN, DAY), pl.Series(["nobody"]), coding).shape == (1, 1, 4)


def test_an_item_whose_last_digit_no_model_knows_has_no_ids(ids: SemanticIds) -> None:
    twins = pl.Series([f"twin {number}" for number in range(9)])
    more = ids.extended(twins, np.repeat(np.eye(4, dtype=np.float32)[:1], 9, axis=0))
    tokens = Coding(more).tokens(twins)
    last = more.digits_of(twins)[:, -1]
    assert (last >= ids.last_digits).any()
    assert ((tokens == 0).all(axis=1) == (last >= ids.last_digits)).all()


def test_targets_are_what_was_clicked_and_converted_on_the_day_and_known_before_the_cutoff(
    ids: SemanticIds, tmp_path: Path
) -> None:
    table = tmp_path / "interactions"
    before = _frame(_row("u", "a", _hours(-30)))
    day = _frame(
        _row("u", "b", _hours(1), _hours(2)),
        _row("u", "c", _hours(1), _hours(30)),
        _row("u", "d", _hours(3)),
        _row("u", "d", _hours(4)),
        _row("w", "gone", _hours(5), _hours(6)),
        _row("w", "gone too", _hours(5)),
        _row("v", "a", _hours(30)).__or__({"date": DAY}),
    )
    tables.write_days(table, [before, day], [before["date"][0], DAY], note={})
    coding = Coding(ids)
    pairs, left_out = training_pairs(tables.scan(table), PLAN, [DAY], _hours(24), coding)
    digits = torch.from_numpy(coding.tokens(ITEMS)).tolist()
    nothing = [0, 0]
    assert pairs.targets["click"].tolist() == [[digits[1], digits[2]], [digits[3], nothing], [nothing, nothing]]
    assert pairs.targets["conversion"].tolist() == [[digits[1], nothing], [nothing, nothing], [nothing, nothing]]
    assert left_out == {"click": 2, "conversion": 1}
    assert pairs.source_RLC[0].tolist() == pairs.source_RLC[1].tolist()
    assert pairs.source_RLC[0, :, :2].tolist() == [digits[0]]
    with pytest.raises(ValueError, match="no click from 2026-01-04 to 2026-01-04 to learn sequences from"):
        training_pairs(tables.scan(table), PLAN, [dt.date(2026, 1, 4)], _hours(48), coding)


@pytest.mark.parametrize(("hours", "known"), [(16, False), (16.1, True), (20, True)])
def test_the_cutoff_is_a_moment_whose_day_in_utc_may_have_begun_long_before(
    ids: SemanticIds, tmp_path: Path, hours: float, *, known: bool
) -> None:
    table, coding = tmp_path / "interactions", Coding(ids)
    tables.write_days(table, [_frame(_row("u", "b", _hours(1), _hours(16)))], [DAY], note={})
    pairs, _ = training_pairs(tables.scan(table), PLAN, [DAY], _hours(hours), coding)
    assert bool(pairs.targets["conversion"].any()) == known
