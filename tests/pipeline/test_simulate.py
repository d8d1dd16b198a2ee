"""Claims about the files of a simulation: rates, times, agreement with the truth and with each other."""

import datetime as dt
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

from pipeline.simulate import simulate
from pipeline.world import SURFACES, SimulatorConfig, World, load_world

TINY = SimulatorConfig(users=50, items=40, days=4, requests_per_day=60)
MIDDLE = SimulatorConfig(
    users=500,
    items=400,
    days=5,
    requests_per_day=1600,
    conversion_rate=0.15,
    late_share=0,
    duplicate_share=0,
    disorder_share=0,
    malformed_share=0,
)


@dataclass(frozen=True)
class Simulation:
    """A folder that was simulated once for many claims, read back."""

    folder: Path
    counts: dict[str, int | float]
    log: pl.DataFrame
    world: World


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    folder = tmp_path_factory.mktemp("simulate") / "middle"
    counts = simulate(MIDDLE, folder)
    log = pl.read_parquet(folder / "impressions" / "*.parquet").join(
        pl.read_parquet(folder / "truth.parquet"), on="impression_id", how="left", maintain_order="left"
    )
    return Simulation(folder, counts, log, load_world(folder / "world.safetensors"))


def hours_between(log: pl.DataFrame, before: str, after: str) -> NDArray[np.float64]:
    return (log[after] - log[before]).dt.total_microseconds().to_numpy() / 3.6e9


def received_events(folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for path in sorted((folder / "events").iterdir()):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            yield path.name.removesuffix(".jsonl.gz"), json.loads(line)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_true_rates_are_within_5_percent_of_the_chosen_ones(simulation: Simulation) -> None:
    click, conversion = simulation.log.select("p_click", "p_conversion").to_numpy().T
    assert click.mean() == pytest.approx(MIDDLE.click_rate, rel=0.05)
    assert (click * conversion).sum() / click.sum() == pytest.approx(MIDDLE.conversion_rate, rel=0.05)


def test_labels_are_calibrated_to_the_truth(simulation: Simulation) -> None:
    log = simulation.log.with_columns(both=pl.col("p_click") * pl.col("p_conversion"))
    for label, truth in (("click", "p_click"), ("conversion", "both")):
        probability, happened = log[truth].to_numpy(), log[label].to_numpy()
        error = np.sqrt((probability * (1 - probability)).sum())
        assert abs(happened.sum() - probability.sum()) < 4 * error
        assert error < 0.06 * probability.sum()  # tight enough to notice a wrong label


def test_counts_and_rates_are_those_of_the_log(simulation: Simulation) -> None:
    log = simulation.log
    impressions, clicks, conversions = log.height, int(log["click"].sum()), int(log["conversion"].sum())
    assert simulation.counts == {
        "impressions": impressions,
        "clicks": clicks,
        "conversions": conversions,
        "click_rate": clicks / impressions,
        "conversion_rate": conversions / clicks,
    }
    assert impressions == MIDDLE.days * MIDDLE.requests_per_day * MIDDLE.slots


def test_the_truth_is_recomputed_from_the_logs_own_columns(simulation: Simulation) -> None:
    log, world = simulation.log, simulation.world
    times_us = log["event_time"].to_physical().to_numpy()
    click, conversion = world.probabilities(
        users=world.user_indices(log["user_id"]),
        items=world.item_indices(log["item_id"]),
        times_us=times_us,
        positions=log["position"].to_numpy(),
        surfaces=log["surface"].replace_strict(SURFACES, range(3)).to_numpy(),
        hours=log["event_time"].dt.hour().to_numpy(),
    )
    assert np.abs(click - log["p_click"].to_numpy()).max() < 1e-6
    assert np.abs(conversion - log["p_conversion"].to_numpy()).max() < 1e-6


def test_lower_positions_have_fewer_clicks(simulation: Simulation) -> None:
    by_position = simulation.log["click"].to_numpy().reshape(-1, MIDDLE.slots).mean(axis=0)
    assert by_position[:3].mean() > 1.3 * by_position[7:].mean()


def test_impressions_are_heavy_tailed_over_items(simulation: Simulation) -> None:
    counts = np.sort(simulation.log["item_id"].value_counts()["count"].to_numpy())[::-1]
    assert counts[: MIDDLE.items // 10].sum() > 0.3 * counts.sum()


def test_no_impression_comes_before_its_items_birth_or_its_users_registration(
    simulation: Simulation,
) -> None:
    items = pl.read_csv(simulation.folder / "items.csv", try_parse_dates=True)
    users = pl.read_csv(simulation.folder / "users.csv", try_parse_dates=True)
    log = simulation.log.join(items, on="item_id").join(users, on="user_id")
    assert log.height == simulation.log.height
    assert (log["event_time"] >= log["available_from"].dt.cast_time_unit("us")).all()
    assert (log["event_time"] >= log["registered_at"].dt.cast_time_unit("us")).all()


def test_conversions_follow_clicks_within_the_window_and_nulls_mean_none(simulation: Simulation) -> None:
    log = simulation.log
    assert (log["click_time"].is_not_null() == log["click"]).all()
    assert (log["click_received_time"].is_not_null() == log["click"]).all()
    for name in ("conversion_time", "conversion_received_time", "value"):
        assert (log[name].is_not_null() == log["conversion"]).all()
    converted = log.filter("conversion")
    assert converted["click"].all()
    hours = hours_between(converted, "click_time", "conversion_time")
    assert hours.min() > 0
    assert hours.max() <= 24 * MIDDLE.conversion_window_days
    assert hours.mean() == pytest.approx(MIDDLE.conversion_delay_hours_mean, rel=0.2)
    seconds = 3600 * hours_between(log.filter("click"), "event_time", "click_time")
    assert seconds.min() > 0
    assert np.median(seconds) < 60


def test_short_windows_cut_long_delays(tmp_path: Path) -> None:
    config = TINY.model_copy(
        update={
            "conversion_delay_hours_mean": 100.0,
            "conversion_window_days": 1,
            "conversion_rate": 0.5,
            "click_rate": 0.5,
        }
    )
    simulate(config, tmp_path / "out")
    log = pl.read_parquet(tmp_path / "out" / "impressions" / "*.parquet").filter("conversion")
    hours = hours_between(log, "click_time", "conversion_time")
    assert hours.max() <= 24
    # nearly uniform over the window: 12 h less 24 ** 2 / (12 * 100) h = 11.5 h
    assert hours.mean() == pytest.approx(11.5, abs=1.5)


def test_everything_is_received_after_it_happened(simulation: Simulation) -> None:
    log = simulation.log
    for event in ("", "click_time", "conversion_time"):
        delay = hours_between(log.drop_nulls(), event or "event_time", f"{event.removesuffix('time')}received_time")
        assert delay.min() > 0


def test_ids_are_unique_and_nobody_sees_an_item_twice_at_once(simulation: Simulation) -> None:
    log = simulation.log
    assert log["impression_id"].is_unique().all()
    assert not log.select("user_id", "item_id", "event_time").is_duplicated().any()
    assert log.group_by("request_id").len()["len"].unique().to_list() == [MIDDLE.slots]


def test_an_event_log_without_faults_agrees_with_the_labelled_log_row_for_row(simulation: Simulation) -> None:
    events = pl.DataFrame([event for _, event in received_events(simulation.folder)], infer_schema_length=None)
    assert events["event_id"].is_unique().all()
    events = events.with_columns(pl.col("event_time", "received_time").str.to_datetime(time_zone="UTC"))
    log = events.filter(pl.col("event") == "impression").drop("event", "event_id", "value")
    for event in ("click", "conversion"):
        happened = events.filter(pl.col("event") == event)
        named = happened.select(
            "impression_id",
            pl.lit(value=True).alias(event),
            pl.col("event_time").alias(f"{event}_time"),
            pl.col("received_time").alias(f"{event}_received_time"),
            *(["value"] if event == "conversion" else []),
        )
        log = log.join(named, on="impression_id", how="left").with_columns(pl.col(event).fill_null(value=False))
    labelled = simulation.log.drop("p_click", "p_conversion")
    assert_frame_equal(
        log.sort("impression_id"),
        labelled.sort("impression_id"),
        check_column_order=False,
        check_row_order=True,
    )


def test_a_days_event_file_without_faults_holds_what_was_received_that_day_in_order(simulation: Simulation) -> None:
    received = [(day, str(event["received_time"])) for day, event in received_events(simulation.folder)]
    assert all(moment.startswith(day) for day, moment in received)
    assert [moment for _, moment in received] == sorted(moment for _, moment in received)
    assert received[-1][0] > str(simulation.log["event_time"].dt.date().max())  # late conversions have files


def test_days_are_local_days(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"first_day": dt.date(2026, 3, 7), "time_zone": "America/New_York"})
    simulate(config, tmp_path / "out")
    paths = sorted((tmp_path / "out" / "impressions").iterdir())
    assert [path.stem for path in paths] == ["2026-03-07", "2026-03-08", "2026-03-09", "2026-03-10"]
    for path in paths:
        local = pl.read_parquet(path)["event_time"].dt.convert_time_zone("America/New_York")
        assert local.dt.date().unique().to_list() == [dt.date.fromisoformat(path.stem)]
    assert pl.read_parquet(paths[0])["event_time"].dtype == pl.Datetime("us", "UTC")


def test_side_tables_list_every_user_and_item(simulation: Simulation) -> None:
    users = pl.read_csv(simulation.folder / "users.csv")
    items = pl.read_csv(simulation.folder / "items.csv")
    assert users["user_id"].to_list() == simulation.world.user_ids(np.arange(MIDDLE.users)).to_list()
    assert items["item_id"].to_list() == simulation.world.item_ids(np.arange(MIDDLE.items)).to_list()
    assert users.columns == ["user_id", "registered_at", "segment", "age_band", "price_sensitivity_band"]
    assert items.columns == ["item_id", "available_from", "category", "brand", "price", "title"]
    assert users["segment"].n_unique() == MIDDLE.segments
    assert (items["price"] > 0).all()


def test_two_simulations_of_a_seed_have_equal_bytes_and_another_seed_has_not(tmp_path: Path) -> None:
    simulate(TINY, tmp_path / "first")
    simulate(TINY, tmp_path / "second")
    simulate(TINY.model_copy(update={"seed": 2}), tmp_path / "other")
    first, second, other = (digests(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    packed = (tmp_path / "first" / "events" / "2026-01-01.jsonl.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # gzip's time of writing, RFC 1952: a later second must not show
    nothing_received = hashlib.sha256(gzip.compress(b"", compresslevel=1, mtime=0)).hexdigest()
    assert set(first.values()) & set(other.values()) <= {nothing_received}


def test_an_earlier_simulation_is_replaced_whole(tmp_path: Path) -> None:
    simulate(TINY, tmp_path / "out")
    simulate(TINY.model_copy(update={"days": 2}), tmp_path / "out")
    assert len(list((tmp_path / "out" / "impressions").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    simulate(TINY, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt', no simulation wrote it: give another folder"):
        simulate(TINY, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "users.csv").write_text("id")
    with pytest.raises(ValueError, match=r"holds 'users.csv', no simulation wrote it"):
        simulate(TINY, tmp_path / "mine")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        simulate(TINY, tmp_path / "out" / "notes.txt")


def test_an_interrupted_simulation_leaves_the_earlier_one_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(TINY, tmp_path / "out")
    before = digests(tmp_path / "out")

    def interrupted(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(gzip, "compress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(TINY.model_copy(update={"seed": 2}), tmp_path / "out")
    assert digests(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert simulate(TINY, tmp_path / "out")["impressions"] == 2400
