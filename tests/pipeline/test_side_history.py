"""Claims about configurations that keep history or run full: valid_from and max_ids, from the file to the features."""

import datetime as dt
import shutil
from pathlib import Path

import polars as pl
import pytest

from features.encoding import FIRST_KNOWN, load_encoder
from pipeline import tables
from pipeline.audit import audit
from pipeline.config import Config, load_config
from pipeline.feature_store import open_store, raw_day
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.ledger import read_ledger
from pipeline.scoring import load_day
from pipeline.workspace import Workspace

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
CHANGE = dt.datetime(2026, 1, 2, 20, tzinfo=dt.UTC)  # 4 o'clock on 3 January in the source's time zone


def settings(**changes: object) -> Config:
    return load_config(EXAMPLE, {"source.time_zone": "Asia/Shanghai", **changes})


@pytest.fixture(scope="module")
def history(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a source whose users all move to segment s99 at 4 o'clock on the third day; the first user joins then."""
    copy = tmp_path_factory.mktemp("history") / "source"
    shutil.copytree(simulated_source, copy)
    users = pl.read_csv(copy / "users.csv").with_columns(since=pl.lit("2025-12-01"))
    moved = users.with_columns(segment=pl.lit("s99"), since=pl.lit(CHANGE.isoformat()))
    pl.concat([users[1:], moved]).write_csv(copy / "users.csv")
    return copy


@pytest.fixture(scope="module")
def run(history: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Workspace]:
    config = settings(**{"users.valid_from": "since", "users.static": False})
    workspace = Workspace(tmp_path_factory.mktemp("history") / "workspace")
    ingest(config, workspace, history)
    featurize(config, workspace, days_of(config, workspace, None))
    return config, workspace


def test_features_hold_the_row_as_of_the_start_of_their_day(run: tuple[Config, Workspace]) -> None:
    store = open_store(*run)
    segments = {day: raw_day(store, day)["segment"].unique().to_list() for day in tables.days(store.interactions)}
    for day, found in segments.items():
        assert ("s99" in found) == (day > dt.date(2026, 1, 3)), "what holds from 4 o'clock is known to the next day"
        assert day <= dt.date(2026, 1, 3) or found == ["s99"]


def test_counters_by_a_column_with_history_count_under_both_values(run: tuple[Config, Workspace]) -> None:
    partials = tables.scan(open_store(*run).table("partials")).filter(pl.col("counter") == "segment_x_category")
    days = partials.select(pl.col("known_on"), (pl.col("key_0") == "s99").alias("moved")).unique().collect()
    assert days.filter("moved")["known_on"].min() == dt.date(2026, 1, 4)
    assert days.filter(~pl.col("moved"))["known_on"].max() == dt.date(2026, 1, 3)


def test_the_audit_holds_for_side_tables_with_history(run: tuple[Config, Workspace]) -> None:
    days = days_of(*run, None)
    assert audit(*run, days, sampled_days=5, rows=100, seed=3).rows_out == 500


def test_a_user_whose_first_row_is_of_a_later_day_is_none_to_serve(run: tuple[Config, Workspace]) -> None:
    config, workspace = run
    days = days_of(config, workspace, None)
    folder = run_folder(config, workspace, days) / "features"
    encoder = load_encoder(folder / "encoder.json")
    served = load_day(config, workspace, folder, days.scored_for, encoder)
    rows = tables.scan(workspace.table("users")).collect()
    assert rows.height > served.users.height, "the table holds two rows of most users"
    assert served.users["user_id"].n_unique() == served.users.height
    assert set(served.users["segment"].drop_nulls()) == {"s99"}


def copied(made: tuple[Config, Workspace], root: Path) -> tuple[Config, Workspace]:
    shutil.copytree(made[1].root, root)
    return made[0], Workspace(root)


def write_users(workspace: Workspace, rows: pl.DataFrame) -> None:
    tables.write_all(workspace.table("users"), rows, {"data_set": "simulated"})


def test_a_late_row_of_a_history_is_taken_in_from_its_day_on(run: tuple[Config, Workspace], tmp_path: Path) -> None:
    config, workspace = copied(run, tmp_path / "workspace")
    days = days_of(config, workspace, None)
    rows = tables.scan(workspace.table("users")).collect().sort("user_id", "valid_from")
    late = rows.unique("user_id", keep="first", maintain_order=True).with_columns(
        segment=pl.lit("s77"),
        valid_from=pl.lit(dt.datetime(2026, 1, 3, 20, tzinfo=dt.UTC)).cast(rows.schema["valid_from"]),
    )
    write_users(workspace, pl.concat([rows, late]))
    outcome = featurize(config, workspace, days)
    assert outcome.notes["days_featurized"] < len(days.all()), "days before it stay"
    assert raw_day(open_store(config, workspace), days.test[0])["segment"].unique().to_list() == ["s77"]
    assert audit(config, workspace, days, sampled_days=5, rows=100, seed=3).rows_out == 500


def test_a_static_table_that_changed_is_told_and_its_features_are_made_again(
    simulated_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, workspace = settings(), Workspace(tmp_path / "workspace")
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    assert featurize(config, workspace, days).notes["days_featurized"] == 0
    rows = tables.scan(workspace.table("users")).collect()
    write_users(workspace, pl.concat([rows, rows.head(1).with_columns(user_id=pl.lit("new"))]))
    assert featurize(config, workspace, days).notes["days_featurized"] == 0, "an id without impressions changes nothing"
    write_users(workspace, rows.with_columns(segment=pl.lit("s55")))
    assert featurize(config, workspace, days).notes["days_featurized"] == len(days.all())
    assert "in a table that is static: features from 2026-01-01 on are made again" in caplog.text
    assert audit(config, workspace, days, sampled_days=3, rows=100, seed=3).rows_out == 300


def test_an_audit_of_features_that_are_not_up_to_date_says_to_make_them(
    run: tuple[Config, Workspace], tmp_path: Path
) -> None:
    config, workspace = copied(run, tmp_path / "workspace")
    days = days_of(config, workspace, None)
    table, day = workspace.table("interactions"), days.test[0]
    rows = tables.scan(table).filter(pl.col("date") == day).collect()
    note = tables.metadata(table)
    kept = {name: note[name] for name in ("data_set", "config_digest", "contract")}
    tables.write_days(table, [rows.head(50)], [day], note=kept)
    with pytest.raises(ValueError, match=f"the features of {day} were not made from the interactions .* featurize"):
        audit(config, workspace, days, sampled_days=1, rows=10, seed=1)


def test_a_day_that_vanished_counts_no_more(run: tuple[Config, Workspace], tmp_path: Path) -> None:
    config, workspace = copied(run, tmp_path / "workspace")
    table = workspace.table("interactions")
    gone, *left = tables.days(table)
    note = {name: tables.metadata(table)[name] for name in ("data_set", "config_digest", "contract")}
    tables.write_days(table, [tables.scan(table).collect().clear()], [gone], note=note)
    days = days_of(config, workspace, None)
    assert days.all() == left
    featurize(config, workspace, days)
    assert gone not in read_ledger(open_store(config, workspace).ledger).source
    assert audit(config, workspace, days, sampled_days=4, rows=50, seed=1).rows_out == 200


def test_a_full_field_gives_its_tail_to_the_hash_buckets(simulated_source: Path, tmp_path: Path) -> None:
    config = settings(**{"features.max_ids": 20, "features.hash_buckets": 7})
    workspace = Workspace(tmp_path / "workspace")
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    encoder = load_encoder(run_folder(config, workspace, days) / "features" / "encoder.json")
    assert encoder.cardinalities()["item_id"] == FIRST_KNOWN + 20 + 7
    examples = tables.scan(workspace.table("examples")).collect()
    assert examples["item_id_code"].is_between(FIRST_KNOWN, FIRST_KNOWN + 26).all(), "no item is unseen"
    assert examples.filter(pl.col("item_id_code") >= FIRST_KNOWN + 20)["item_id"].n_unique() > 20


def test_what_was_clicked_longer_ago_than_seen_days_may_be_shown_again(simulated_source: Path, tmp_path: Path) -> None:
    config = settings()
    workspace = Workspace(tmp_path / "workspace")
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    folder = run_folder(config, workspace, days) / "features"
    encoder = load_encoder(folder / "encoder.json")
    sizes = []
    for back in (1, 3, 30):
        retrieval = config.retrieval.model_copy(update={"seen_days": back})
        day = load_day(config.model_copy(update={"retrieval": retrieval}), workspace, folder, days.test[0], encoder)
        sizes.append(len(day.seen))
    rows = tables.scan(workspace.table("interactions")).filter(pl.col("date") < days.test[0], pl.col("click")).collect()
    assert sizes[0] < sizes[1] < sizes[2]
    known = rows.filter(pl.col("click_counted_at") < open_store(config, workspace).plan.start_of(days.test[0]))
    available = set(day.items["item_id"].to_list())
    pairs = known.filter(pl.col("item_id").is_in(sorted(available))).select("user_id", "item_id").unique()
    assert sizes[2] == pairs.height


def test_a_workspace_of_an_earlier_version_is_refused(simulated_source: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    rows = pl.DataFrame({"impression_id": ["m"], "date": [dt.date(2026, 1, 1)]})
    tables.write_days(workspace.table("interactions"), [rows], [dt.date(2026, 1, 1)], note={"data_set": "simulated"})
    with pytest.raises(ValueError, match="was written by an earlier version of counterpoise: use a new --workspace"):
        ingest(settings(), workspace, simulated_source)
    with pytest.raises(ValueError, match="was written by an earlier version of counterpoise"):
        days_of(settings(), workspace, None)
