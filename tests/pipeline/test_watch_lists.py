"""What published lists came to: held against a naive count of the same log and lists."""

import datetime as dt
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import tables, watch_lists
from pipeline.config import Config
from pipeline.ingest import ingest
from pipeline.popularity import known_impressions
from pipeline.watch_lists import ALL, AT_REFERENCE, CONTEXT, PREDICTED, copies, copy_of, realised, summed
from pipeline.watch_rates import day_figures, segment_figures, task_figures
from pipeline.workspace import Workspace, write_json

Row = dict[str, Any]
DAYS = [dt.date(2026, 1, day) for day in (3, 4, 5)]


def _publish(workspace: Workspace, day: dt.date, lists: pl.DataFrame, *, parts: int = 1, at: dt.datetime) -> str:
    """Leave the audit copy of lists as publish does, in some parts by user."""
    name = f"{day}-{at:%Y%m%d%H%M}"
    folder = workspace.root / "published" / name
    folder.mkdir(parents=True)
    users = lists["user_id"].unique().sort()
    for number, share in enumerate(np.array_split(np.arange(len(users)), parts)):
        mine = lists.filter(pl.col("user_id").is_in(users[share].implode())).sort("user_id", "rank")
        mine.write_parquet(folder / f"part-{number:05}.parquet")
    record = {"name": name, "scored_for": str(day), "published_at": at.isoformat(), "store": "lmdb:feed"}
    record |= {"model_version": "3", "run": "some-run", "users": len(users), "candidates": lists.height}
    write_json(folder / "version.json", record)
    write_json(folder / "catalogue.json", {"items": lists["item_id"].unique().sort().to_list(), "fallback": []})
    return name


def _lists(log: pl.DataFrame, day: dt.date) -> pl.DataFrame:
    """Make lists of half of the pairs that were shown on a day, and of others, for all users but some."""
    generator = np.random.default_rng(day.day)
    pairs = log.filter(pl.col("date") == day).select("user_id", "item_id").unique().sort("user_id", "item_id")
    shown = pairs.filter(pl.Series(generator.random(pairs.height) < 0.5))
    never = pairs.select("user_id", pl.lit("never shown").alias("item_id")).unique()
    lists = pl.concat([shown, never]).filter(~pl.col("user_id").str.ends_with("3")).sort("user_id", "item_id")
    click, conversion = generator.uniform(0.05, 0.4, lists.height), generator.uniform(0.1, 0.5, lists.height)
    return lists.with_columns(
        rank=pl.int_range(pl.len()).over("user_id") + 1,
        p_click=pl.Series(click, dtype=pl.Float32),
        p_conversion=pl.Series(conversion, dtype=pl.Float32),
        p_click_and_conversion=pl.Series(click * conversion, dtype=pl.Float32),
    )


@pytest.fixture(scope="module")
def world(
    simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Workspace, pl.DataFrame]:
    """Return five days of interactions, with lists published for 4 and 5 January, those of the 5th in three parts."""
    config = simulated_config.model_copy(
        update={"evaluation": simulated_config.evaluation.model_copy(update={"replicates": 50})}
    )
    workspace = Workspace(tmp_path_factory.mktemp("watch") / "workspace")
    ingest(config, workspace, simulated_source)
    log = tables.scan(workspace.table("interactions")).collect()
    for day, parts in ((DAYS[1], 1), (DAYS[2], 3)):
        _publish(workspace, day, _lists(log, day), parts=parts, at=dt.datetime(2026, 11, 1, tzinfo=dt.UTC))
    return config, workspace, log


def _naive(log: pl.DataFrame, day: dt.date, keep: Callable[[Row], bool] = lambda _: True) -> dict[str, Row]:
    """Count rows, positives, predictions and loss of listed impressions one by one, labels as they stand."""
    lists = {(row["user_id"], row["item_id"]): row for row in _lists(log, day).iter_rows(named=True)}
    found = {task: {"rows": 0, "positives": 0, "predicted": 0.0, "loss": 0.0} for task in PREDICTED}
    for row in log.filter(pl.col("date") == day).iter_rows(named=True):
        listed = lists.get((row["user_id"], row["item_id"]))
        if listed is None or not keep(row):
            continue
        for task, name in PREDICTED.items():
            if task == "conversion" and not row["click"]:
                continue
            label, p = row["click" if task == "click" else "conversion"], listed[name]
            found[task]["rows"] += 1
            found[task]["positives"] += label
            found[task]["predicted"] += p
            found[task]["loss"] -= math.log(p if label else 1 - p)
    return found


def _kept(config: Config, how: str) -> Config:
    return config.model_copy(update={"labels": config.labels.model_copy(update={"immature": how})})


@pytest.fixture
def final_labels(world: tuple[Config, Workspace, pl.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the labels of the log as they are, whatever their windows."""
    del world
    monkeypatch.setattr(watch_lists, "maturity_now", lambda *_: None)


@pytest.mark.usefixtures("final_labels")
def test_rates_of_listed_impressions_equal_a_naive_count(world: tuple[Config, Workspace, pl.DataFrame]) -> None:
    config, workspace, log = world
    found, labels = realised(config, workspace, DAYS)
    assert labels == "final"
    for result in found[1:]:
        expected = _naive(log, result.day)
        figures = day_figures(config, result)["tasks"]
        assert result.explained == expected["click"]["rows"] > 50
        for task, naive in expected.items():
            assert (figures[task]["rows"], figures[task]["positives"]) == (naive["rows"], naive["positives"])
        click = expected["click"]
        assert figures["click"]["pcoc"]["value"] == pytest.approx(click["predicted"] / click["positives"])
        assert figures["click"]["log_loss"]["value"] == pytest.approx(click["loss"] / click["rows"])
        assert figures["click"]["pcoc"]["low"] < figures["click"]["pcoc"]["value"] < figures["click"]["pcoc"]["high"]


@pytest.mark.usefixtures("final_labels")
def test_coverage_counts_users_without_a_list_too(world: tuple[Config, Workspace, pl.DataFrame]) -> None:
    config, workspace, log = world
    found, _ = realised(config, workspace, DAYS[2:])
    figures = day_figures(config, found[0])
    of_day, lists = log.filter(pl.col("date") == DAYS[2]), _lists(log, DAYS[2])
    active, listed = set(of_day["user_id"]), set(lists["user_id"])
    assert (figures["impressions"], figures["active_users"]) == (of_day.height, len(active))
    assert figures["active_users_share"] == pytest.approx(len(active & listed) / len(active))
    assert 0 < figures["active_users_share"] < 1
    assert (figures["list_users"], figures["list_items"]) == (len(listed), lists["item_id"].n_unique())


@pytest.mark.usefixtures("final_labels")
def test_ranges_of_users_give_what_all_users_at_once_give(
    world: tuple[Config, Workspace, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workspace, _ = world
    whole, _ = realised(config, workspace, DAYS[2:])
    assert len(whole[0].sums) == len(PREDICTED)
    monkeypatch.setattr(watch_lists, "RANGE_ROWS", 100)
    parts, _ = realised(config, workspace, DAYS[2:])
    assert len(parts[0].sums) == 3 * len(PREDICTED)
    assert (parts[0].users, parts[0].users_with_list) == (whole[0].users, whole[0].users_with_list)
    first, second = summed(whole), summed(parts)
    assert first is not None
    assert second is not None
    assert first.drop("predicted", "loss").equals(second.drop("predicted", "loss"))
    assert second["predicted"].to_list() == pytest.approx(first["predicted"].to_list())


@pytest.mark.usefixtures("final_labels")
def test_every_kind_of_segment_holds_all_rows_and_the_reference_only_its_own(
    world: tuple[Config, Workspace, pl.DataFrame],
) -> None:
    config, workspace, log = world
    found, _ = realised(config, workspace, DAYS)
    sums = summed(found)
    total = task_figures(config, sums)["click"]["rows"]
    segments = segment_figures(config, sums)
    kinds = {one["segment"] for one in segments}
    assert kinds >= {"new users", "new items", "item popularity decile", "surface: surface", "context"}
    for kind in kinds:
        assert sum(one["tasks"]["click"]["rows"] for one in segments if one["segment"] == kind) == total
    at_reference = {"position": "1", "surface": "home"}
    naive = sum(
        _naive(log, day, lambda row: all(row[key] == value for key, value in at_reference.items()))["click"]["rows"]
        for day in DAYS[1:]
    )
    assert 0 < task_figures(config, sums, CONTEXT, AT_REFERENCE)["click"]["rows"] == naive < total
    assert not any(one["segment"] == ALL for one in segments)


def test_users_and_items_are_as_known_as_evaluation_counts_them(simulated_config: Config, tmp_path: Path) -> None:
    table, known = Workspace(tmp_path).table("interactions"), dt.datetime(2026, 1, 2, 1, tzinfo=dt.UTC)
    late = [known + dt.timedelta(days=days) for days in (0, 0, 1, 2, 9)]
    rows = pl.DataFrame(
        {"user_id": list("abaab"), "item_id": list("xxyyx"), "received_time": late, "date": [DAYS[0]] * 5}
    )
    tables.write_days(table, [rows], [DAYS[0]], note={})
    found = {}
    for key in ("user_id", "item_id"):
        counts = watch_lists._known_counts(simulated_config, tables.scan(table), DAYS, key)  # noqa: SLF001
        for number, day in enumerate(DAYS):
            expected = known_impressions(simulated_config, Workspace(tmp_path), 0, day, key)
            known_then = counts.filter(pl.col("known_on") <= number).group_by(key).agg(pl.col("len").sum())
            found[key, day.day] = dict(known_then.iter_rows())
            assert found[key, day.day] == dict(expected.iter_rows())
    assert found["user_id", 4] == {"a": 2, "b": 1}
    assert found["user_id", 5] == {"a": 3, "b": 1}  # the one of 10 January is not known yet


def test_labels_that_may_change_are_left_out_where_they_are_dropped(
    world: tuple[Config, Workspace, pl.DataFrame],
) -> None:
    config, workspace, log = world
    found, labels = realised(_kept(config, "drop"), workspace, DAYS)
    assert labels == "drop"
    times = [log[name].max() for name in ("received_time", "click_known_at", "conversion_known_at")]
    newest = max(time for time in times if isinstance(time, dt.datetime))
    result = found[1]
    final = _naive(log, result.day, lambda row: row["label_matures_at"] <= newest)["click_and_conversion"]
    listed = _naive(log, result.day)["click_and_conversion"]
    figures = day_figures(config, result)
    assert figures["tasks"]["click_and_conversion"]["rows"] == final["rows"] < listed["rows"]
    assert figures["immature"]["click_and_conversion"] == listed["rows"] - final["rows"]


def test_immature_conversions_are_weighted_up_where_their_delay_can_be_fitted(
    world: tuple[Config, Workspace, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workspace, _ = world
    monkeypatch.setattr("pipeline.maturity.MIN_CONVERSIONS", 5)
    found, labels = realised(_kept(config, "weight"), workspace, DAYS)
    assert labels == "weight"
    sums = summed(found)
    assert sums is not None
    both = sums.filter((pl.col("task") == "click_and_conversion") & (pl.col("segment") == ALL))
    assert both["positives"].sum() > both["hits"].sum() > 0


def test_a_day_without_published_lists_is_named(world: tuple[Config, Workspace, pl.DataFrame]) -> None:
    config, workspace, log = world
    found, _ = realised(_kept(config, "drop"), workspace, DAYS)
    told = day_figures(config, found[0])
    rows = log.filter(pl.col("date") == DAYS[0]).height
    assert told == {"day": "2026-01-03", "impressions": rows, "reason": "no lists were published for 2026-01-03"}
    assert summed(found[:1]) is None
    assert segment_figures(config, None) == []


def test_of_several_versions_the_last_before_the_days_end_counts(
    simulated_config: Config, tmp_path: Path, world: tuple[Config, Workspace, pl.DataFrame]
) -> None:
    workspace, lists = Workspace(tmp_path), _lists(world[2], DAYS[2])
    # The day ends at 16:00 UTC, midnight in Shanghai.
    for hour in (1, 15, 17):
        _publish(workspace, DAYS[2], lists, at=dt.datetime(2026, 1, 5, hour, tzinfo=dt.UTC))
    found = copies(simulated_config, workspace)
    chosen = copy_of(found, DAYS[2], simulated_config.source.time_zone)
    assert chosen is not None
    assert chosen.published_at.hour == 15
    replayed = copy_of(found[2:], DAYS[2], simulated_config.source.time_zone)
    assert replayed is not None
    assert replayed.published_at.hour == 17
    assert copy_of(found, DAYS[1], simulated_config.source.time_zone) is None


def test_lists_of_another_store_are_not_counted(world: tuple[Config, Workspace, pl.DataFrame]) -> None:
    config, workspace, _ = world
    other = config.model_copy(update={"feed": config.feed.model_copy(update={"url": "lmdb:elsewhere"})})
    assert len(copies(config, workspace)) == 2
    assert copies(other, workspace) == []
