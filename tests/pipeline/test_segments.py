"""Claims about segments of the test impressions, and about how well users and items were known before a day."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.inputs import Features
from pipeline import tables
from pipeline.config import Config
from pipeline.metrics import evaluate_task
from pipeline.popularity import deciles_of, known_impressions, with_decile
from pipeline.scored import Scored
from pipeline.segments import MISSING, OTHERS, SHOWN_VALUES, segment_values, segments, with_others
from pipeline.workspace import Workspace, write_json, write_parquet

DAY = dt.date(2026, 1, 3)
KINDS = {"activity decile", "new users", "item popularity decile", "new items", "surface: tab"}


def counts(key: str, impressions: dict[str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        {key: list(impressions), "impressions": list(impressions.values())},
        schema={key: pl.String, "impressions": pl.UInt32},
    )


ids = st.sampled_from([f"id{n}" for n in range(12)])
impressions = st.dictionaries(ids, st.integers(1, 5))


@given(
    rows=st.lists(st.tuples(ids, ids, st.one_of(st.none(), st.text(max_size=2))), min_size=1, max_size=40),
    users=impressions,
    items=impressions,
)
def test_every_impression_falls_in_exactly_one_value_of_each_kind(
    rows: list[tuple[str, str, str | None]], users: dict[str, int], items: dict[str, int]
) -> None:
    frame = pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "tab": pl.String}, orient="row")
    values = with_others(segment_values(frame, counts("user_id", users), counts("item_id", items), ["tab"]))
    assert set(values.columns) == KINDS
    assert values.height == len(rows)
    assert sum(values.null_count().row(0)) == 0
    for kind in KINDS:
        assert sum(values[kind].value_counts()["count"]) == len(rows)
    assert set(values["new users"]) <= {"new", "known"}
    for (user, item, tab), found in zip(rows, values.iter_rows(named=True), strict=True):
        assert (found["new users"] == "new") == (found["activity decile"] == "none") == (user not in users)
        assert (found["new items"] == "new") == (found["item popularity decile"] == "none") == (item not in items)
        assert found["surface: tab"] in {MISSING if tab is None else tab, OTHERS}


def test_a_tenth_of_the_ids_is_a_decile_and_the_last_has_the_most_impressions() -> None:
    known = with_decile(counts("item_id", {f"i{n}": n + 1 for n in range(20)}))
    assert known["decile"].to_list() == [str(n // 2 + 1) for n in range(20)]


def test_ids_with_equal_counts_share_the_decile_of_their_middle() -> None:
    known = with_decile(counts("item_id", {"a": 7, "b": 7, "c": 7, "d": 7}))
    assert set(known["decile"]) == {"7"}  # middle of the ranks 1 to 4 is 2.5, of 4: 6.25 tenths


def test_an_id_without_an_impression_has_no_decile() -> None:
    found = deciles_of(pl.Series("item_id", ["new", "old"]), counts("item_id", {"old": 3}))
    assert found.to_list() == ["none", "10"]
    nothing = deciles_of(pl.Series("item_id", ["new", "old"]), counts("item_id", {}))
    assert nothing.to_list() == ["none", "none"]


def test_the_values_beyond_the_most_frequent_are_put_together() -> None:
    column = [f"{n:02}" for n in range(SHOWN_VALUES + 3) for _ in range(20 - n)]
    shown = with_others(pl.DataFrame({"surface: tab": column}))["surface: tab"]
    assert set(shown) == {f"{n:02}" for n in range(SHOWN_VALUES)} | {OTHERS}
    assert (shown == OTHERS).sum() == sum(20 - n for n in range(SHOWN_VALUES, SHOWN_VALUES + 3))


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """Return a workspace whose history has two days, one impression of it known too late for the day that follows."""
    workspace = Workspace(tmp_path)
    late = dt.datetime(2026, 1, 3, tzinfo=dt.UTC)
    rows = [
        (dt.date(2026, 1, 1), "u1", "i1", late - dt.timedelta(days=1)),
        (dt.date(2026, 1, 2), "u1", "i2", late - dt.timedelta(microseconds=1)),
        (dt.date(2026, 1, 2), "u2", "i2", late),
        (DAY, "u3", "i3", late + dt.timedelta(hours=1)),
    ]
    schema = {"date": pl.Date, "user_id": pl.String, "item_id": pl.String, "received_time": pl.Datetime("us", "UTC")}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    tables.write_days(workspace.table("interactions"), [frame], sorted(set(frame["date"])), note={})
    return workspace


def test_known_are_the_impressions_before_the_day_that_were_received_before_it(
    place: Workspace, make_config: Callable[..., Config]
) -> None:
    found = known_impressions(make_config(), place, 0, DAY, "user_id")
    assert found.rows() == [("u1", 2)]
    assert known_impressions(make_config(), place, 0, DAY, "item_id").rows() == [("i1", 1), ("i2", 1)]


def scored(rows: int, *, positives: int) -> tuple[Scored, pl.DataFrame]:
    """Return one day of a known and a new user, `positives` of the new user's rows positive."""
    generator = np.random.default_rng(1)
    known = generator.random(rows) < 0.5
    labels = generator.random(rows) < 0.4
    new = np.flatnonzero(~known)
    labels[new] = np.arange(len(new)) < positives
    ids = [f"row{n}" for n in range(rows)]
    users = np.where(known, "u1", "u9")
    frame = pl.DataFrame({"impression_id": ids, "user_id": users, "item_id": ["i1"] * rows, "date": [DAY] * rows})
    features = Features(torch.zeros(rows, 0, dtype=torch.int64), torch.zeros(rows, 0))
    everywhere = np.ones(rows, dtype=bool)
    codes = known.astype(np.int64)
    made = Scored(
        [frame], [features], codes, {"click": labels}, {"click": everywhere}, {"click": generator.random(rows)}
    )
    return made, frame.select("impression_id", tab=pl.Series(["home"] * rows)).reverse()


def measured(
    place: Workspace, config: Config, sample: tuple[Scored, pl.DataFrame]
) -> dict[tuple[str, str], dict[str, Any]]:
    folder = place.run("run")
    (folder / "features").mkdir(parents=True)
    write_json(folder / "features" / "versions.json", {"interactions": 0})
    write_parquet(sample[1], folder / "features" / f"raw-{DAY}.parquet")
    found = segments(config, place, folder, sample[0])
    return {(row["segment"], row["value"]): row for row in found}


def test_a_segment_is_measured_on_its_own_impressions(place: Workspace, make_config: Callable[..., Config]) -> None:
    config = make_config(context={"columns": {"tab": "home"}}, evaluation={"replicates": 20})
    sample = scored(400, positives=80)
    found = measured(place, config, sample)
    assert set(found) == {
        ("activity decile", "none"),
        ("activity decile", "10"),
        ("new users", "known"),
        ("new users", "new"),
        ("item popularity decile", "8"),
        ("new items", "known"),
        ("surface: tab", "home"),
    }
    new = found["new users", "new"]
    among = sample[0].users == 0
    rows = sample[0].task("click", among)
    expected = evaluate_task(
        labels=rows.labels, probabilities=rows.probabilities, users=rows.users, replicates=20, seed=config.seed
    )
    assert (new["rows"], new["users"], new["positives"]) == (among.sum(), 1, {"click": 80})
    assert new["tasks"]["click"] == {name: expected[name].as_dict() for name in ("auc", "gauc", "log_loss", "pcoc")}
    assert found["surface: tab", "home"]["rows"] == 400


def test_a_segment_with_too_few_of_a_class_says_so(place: Workspace, make_config: Callable[..., Config]) -> None:
    config = make_config(context={"columns": {"tab": "home"}}, evaluation={"replicates": 20})
    sample = scored(400, positives=29)
    found = measured(place, config, sample)["new users", "new"]
    negatives = int((sample[0].users == 0).sum()) - 29
    assert found["tasks"]["click"] == {
        "auc": None,
        "gauc": None,
        "log_loss": None,
        "pcoc": None,
        "reason": f"29 positives and {negatives} negatives: 30 of each are needed",
    }
    assert found["positives"] == {"click": 29}
