"""The watch as a stage: what it says of a night that ended anywhere, its alarms, and what it leaves for machines."""

import datetime as dt
import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import polars as pl
import pytest
from typer.testing import CliRunner

from pipeline import tables, tracking
from pipeline.__main__ import app
from pipeline.config import Config
from pipeline.featurize import days_of
from pipeline.feed_records import Version
from pipeline.ingest import ingest
from pipeline.run import run
from pipeline.split import Days
from pipeline.watch import observe, watch
from pipeline.watch_alarms import alarms_of
from pipeline.watch_metrics import Sample, exposition, mlflow_figures, samples_of
from pipeline.watch_section import Watch
from pipeline.watch_state import freshness, last_success, quarantined, reason_of, stage_times
from pipeline.workspace import Workspace, write_json

DAYS = Days([dt.date(2026, 1, 3)], [dt.date(2026, 1, 4)], [dt.date(2026, 1, 5)], dt.date(2026, 1, 6))
NOW = dt.datetime(2026, 1, 6, 3, tzinfo=dt.UTC)
STAGES = ("featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank", "publish")


def _version(day: str = "2026-01-06", run: str = "2026-01-05-aa") -> Version:
    return Version(
        format=1,
        name=f"{day}-0123abcd",
        scored_for=day,
        model_version="3",
        run=run,
        candidates_version=1,
        fields=("score",),
        scales=(1.0,),
        users=7,
        candidates=70,
        digest="",
        catalogue_digest="",
        published_at=f"{day}T02:00:00+00:00",
    )


def _live(root: Path, version: Version) -> None:
    folder = root / "feed" / "versions" / version.name
    folder.mkdir(parents=True)
    (folder / "version.json").write_text(version.to_json())
    (root / "feed" / "current").write_text(version.name)


def _record(folder: Path, *stages: str, seconds: float = 1.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = {name: {"seconds": seconds, "ended": "2026-01-06T02:00:00+00:00"} for name in stages}
    write_json(folder / "record.json", entries)


@pytest.fixture
def config() -> Config:
    return Config.model_validate({"name": "small", "source": {"interactions": "log.*"}})


def test_lists_of_the_newest_run_are_as_new_as_the_data(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "2026-01-05-aa"
    _live(tmp_path, _version())
    _record(folder, *STAGES)
    found = freshness(config, Workspace(tmp_path), folder, (DAYS, None), NOW)
    assert (found["behind_days"], found["age_seconds"], found["users"]) == (0, 3600.0, 7)
    assert found["sentence"] == (
        "The lists for 2026-01-06 (version 2026-01-06-0123abcd of model 3, published 2026-01-06 02:00 UTC) are live, "
        "as new as the data: run 2026-01-05-aa made them."
    )


def test_a_night_whose_log_is_missing_has_lists_older_than_was_asked_for(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "2026-01-05-aa"
    _live(tmp_path, _version())
    _record(folder, *STAGES)
    asked = dt.date(2026, 1, 6)
    found = freshness(config, Workspace(tmp_path), folder, (DAYS, asked), NOW)
    assert found["behind_days"] == 1
    assert found["sentence"].endswith(
        "are live, 1 day older than was asked for: there is no log of 2026-01-06, the newest day of data is "
        "2026-01-05; run 2026-01-05-aa made them."
    )
    (alarm,) = alarms_of(Watch(), _found(freshness=found))
    assert alarm.name == "old lists"
    assert freshness(config, Workspace(tmp_path), folder, (DAYS, asked - dt.timedelta(days=3)), NOW)["behind_days"] == 0


def test_the_stage_at_which_the_newest_run_ended_is_named(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "2026-01-05-aa"
    _live(tmp_path, _version("2026-01-04", "2026-01-03-aa"))
    _record(folder, "featurize", "train")
    found = freshness(config, Workspace(tmp_path), folder, (DAYS, None), NOW)
    assert found["behind_days"] == 2
    assert found["sentence"].endswith(
        "are live, 2 days older than the newest data allow: run 2026-01-05-aa has finished train and not calibrate: "
        "run `counterpoise calibrate` again."
    )


def test_a_refusal_of_the_gate_is_the_reason_for_old_lists(tmp_path: Path) -> None:
    _record(tmp_path, *STAGES[:-1])
    refused = {"decision_gate": "failed", "version": "4", "decision": "challenger: click log-loss is worse; GAUC too"}
    write_json(tmp_path / "register.json", refused)
    told = reason_of(tmp_path, DAYS, _version("2026-01-05", "other"))
    assert told == (f"the gate of run {tmp_path.name} refused version 4 (click log-loss is worse, and more).")


def test_what_publish_said_of_lists_that_stay_is_repeated(tmp_path: Path) -> None:
    _record(tmp_path, *STAGES)
    write_json(tmp_path / "published.json", {"kept": "the gate refused version 4"})
    told = reason_of(tmp_path, DAYS, _version("2026-01-05", "other"))
    assert told == f"run {tmp_path.name} has finished: the gate refused version 4."


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ((), "has finished no stage: `counterpoise run` with the same options begins it"),
        (STAGES, "its lists are not the live ones: run `counterpoise publish`"),
    ],
)
def test_a_run_that_has_not_begun_or_not_published_says_what_to_run(
    tmp_path: Path, stages: tuple[str, ...], expected: str
) -> None:
    _record(tmp_path, *stages)
    assert expected in reason_of(tmp_path, DAYS, None)


def test_another_run_of_the_same_day_is_named(tmp_path: Path) -> None:
    told = reason_of(tmp_path, DAYS, _version(run="2026-01-05-bb"))
    assert told == f"run 2026-01-05-bb made them; run {tmp_path.name} is the newest."


def test_a_store_that_cannot_be_read_is_told_and_not_hidden(config: Config, tmp_path: Path) -> None:
    _live(tmp_path, _version())
    next(tmp_path.glob("feed/versions/*/version.json")).write_text("{")
    found = freshness(config, Workspace(tmp_path), tmp_path / "runs" / "x", (DAYS, None), NOW)
    assert found["sentence"].startswith("The live lists cannot be read: the record of")
    assert [alarm.name for alarm in alarms_of(Watch(), _found(freshness=found))] == ["no lists"]


def test_stage_times_leave_open_what_a_run_has_not_finished(tmp_path: Path) -> None:
    folders = [tmp_path / f"2026-01-0{day}-aa" for day in (3, 4, 5)]
    for folder, seconds in zip(folders, (10.0, 20.0, 90.0), strict=True):
        _record(folder, "featurize", seconds=seconds)
    _record(folders[0], "featurize", "train", seconds=10.0)
    found = {one["stage"]: one for one in stage_times(folders)}
    assert list(found) == ["featurize", "train"]
    assert found["featurize"]["usual"] == 15.0
    assert found["train"]["seconds"] == {"2026-01-03-aa": 10.0, "2026-01-04-aa": None, "2026-01-05-aa": None}


def test_the_last_success_of_a_stage_may_be_of_an_earlier_run(tmp_path: Path) -> None:
    _record(tmp_path / "runs" / "2026-01-04-aa", "featurize", "rank")
    _record(tmp_path / "runs" / "2026-01-05-aa", "featurize", seconds=2.0)
    found = last_success(Workspace(tmp_path))
    assert found["rank"] == {"ended": dt.datetime(2026, 1, 6, 2, tzinfo=dt.UTC).timestamp(), "seconds": 1.0}
    assert found["featurize"]["seconds"] == 2.0


def _found(**parts: Any) -> dict[str, Any]:
    """Return the figures of a watch without an alarm, some parts replaced."""
    figures = {"rows": 900, "positives": 80, "pcoc": {"value": 1.0, "low": 0.9, "high": 1.1}, "log_loss": None}
    drift: dict[str, Any] = {"features": {"reason": "few"}, "predictions": {"reason": "few"}}
    return {
        "watched_at": "2026-01-06T03:00:00+00:00",
        "newest_day": "2026-01-05",
        "asked_day": "2026-01-05",
        "freshness": {"behind_days": 0, "sentence": "The lists are live."},
        "tasks": {"click": figures},
        "at_reference": {"click": figures},
        "days": [{"day": "2026-01-05", "impressions": 9, "explained_share": 0.3, "active_users_share": 0.9}],
        "drift": drift,
        "quarantine": {"now": {}, "runs": []},
        "stages": [],
        "alarms": [],
        **parts,
    }


def _drifted(**column: float) -> dict[str, Any]:
    one = {"column": "price", "divergence": 0.05, "floor": 0.01, "excess": 0.04, "rows": 9, **column}
    return {"features": {"days": 5, "columns": [one], "shares": []}, "predictions": {"reason": "few"}}


def _shares(**shares: float) -> dict[str, Any]:
    one = {"column": "item_id", "missing_newest": 0.0, "missing_training": 0.0, **shares}
    return {"features": {"days": 5, "columns": [], "shares": [one]}, "predictions": {"reason": "few"}}


def _stage(*seconds: float) -> list[dict[str, Any]]:
    return [{"stage": "train", "seconds": {str(n): value for n, value in enumerate(seconds)}, "usual": seconds[0]}]


def _pcoc(low: float, high: float) -> dict[str, Any]:
    return {"click": {"rows": 900, "pcoc": {"value": (low + high) / 2, "low": low, "high": high}}}


def test_nothing_unusual_is_no_alarm() -> None:
    assert alarms_of(Watch(), _found()) == []


@pytest.mark.parametrize(
    ("limits", "parts", "sentence"),
    [
        (
            {},
            {"freshness": {"behind_days": 2, "sentence": "The lists are live."}},
            "The lists are live. At most 0 days are allowed (watch.max_behind_days).",
        ),
        (
            {},
            {"at_reference": _pcoc(1.3, 1.5)},
            (
                "PCOC of click on 900 listed impressions at the context's reference is 1.400 [1.300, 1.500]: wholly "
                "outside 0.8 to 1.25 (watch.pcoc)."
            ),
        ),
        (
            {"min_users_share": 0.95},
            {},
            "90.0% of the active users had a list on 2026-01-05: at least 95.0% is expected (watch.min_users_share).",
        ),
        (
            {"min_explained_share": 0.5},
            {},
            (
                "30.0% of the impressions were of their lists on 2026-01-05: at least 50.0% is expected "
                "(watch.min_explained_share)."
            ),
        ),
        (
            {},
            {"drift": _drifted()},
            (
                "price has drifted: divergence 0.0500 bits, 0.0400 above the floor 0.0100 of 5 days; 0.01 is allowed "
                "(watch.min_drift)."
            ),
        ),
        (
            {},
            {"drift": _shares(unseen_newest=0.25, unseen_training=0.1)},
            (
                "25.0% of item_id are unseen, 10.0% were on the training days: an increase of 10.0% is allowed "
                "(watch.max_share_increase)."
            ),
        ),
        (
            {},
            {"drift": _shares(missing_newest=0.2)},
            (
                "20.0% of item_id are missing, 0.0% were on the training days: an increase of 10.0% is allowed "
                "(watch.max_share_increase)."
            ),
        ),
        (
            {},
            {"stages": _stage(100.0, 400.0)},
            "train took 400 s, 4.0 times the usual 100 s: 3 times is allowed (watch.slow_factor).",
        ),
    ],
)
def test_an_alarm_is_a_sentence_with_its_figure_and_its_limit(
    limits: dict[str, float], parts: dict[str, Any], sentence: str
) -> None:
    (alarm,) = alarms_of(Watch.model_validate(limits), _found(**parts))
    assert alarm.sentence == sentence
    assert alarm.figure is not None
    assert alarm.limit is not None


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ({"max_behind_days": 2}, {"freshness": {"behind_days": 2, "sentence": ""}}),
        ({"pcoc": (0.5, 1.35)}, {"at_reference": _pcoc(1.3, 1.5)}),
        ({}, {"at_reference": _pcoc(1.2, 1.5)}),  # the interval reaches what is allowed
        ({"min_drift": 0.1}, {"drift": _drifted()}),
        ({"max_share_increase": 0.3}, {"drift": _shares(missing_newest=0.2)}),
        ({"slow_factor": 5.0}, {"stages": _stage(100.0, 400.0)}),
        ({}, {"stages": _stage(1.0, 40.0)}),  # below a minute nobody waits
    ],
)
def test_within_its_limit_nothing_alarms(limits: dict[str, Any], parts: dict[str, Any]) -> None:
    assert alarms_of(Watch.model_validate(limits), _found(**parts)) == []


def test_the_limits_are_checked_and_change_no_runs_name(config: Config) -> None:
    other = Config.model_validate({**config.model_dump(exclude_unset=True), "watch": {"days": 3}})
    assert other.digest() == config.digest()
    with pytest.raises(ValueError, match=r"watch.pcoc = \[1.1, 1.2\]: expected bounds around 1 such as \[0.8, 1.25\]"):
        Watch(pcoc=(1.1, 1.2))


SERIES = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)')


def parse(text: str) -> dict[tuple[str, str], float]:
    """Read the exposition format strictly: every sample after the HELP and TYPE of its name, no name in two groups."""
    assert text.endswith("\n")
    found: dict[tuple[str, str], float] = {}
    helped, current = set(), ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split()[2]
            assert current not in helped, line
            helped.add(current)
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {current} gauge"
        else:
            matched = SERIES.fullmatch(line)
            assert matched, line
            assert matched[1] == current, line
            key = (matched[1], matched[2] or "")
            assert key not in found, line
            found[key] = float(matched[3])
    return found


def test_the_exposition_format_escapes_labels_and_groups_names() -> None:
    hostile = 'a "quoted" \\ back\nline'
    samples = [
        Sample("b_total", "Two\nlines.", 1.5, {"reason": hostile}),
        Sample("a_seconds", "A.", float("inf")),
        Sample("b_total", "Two\nlines.", 2.0, {"reason": "plain"}),
    ]
    text = exposition(samples)
    found = parse(text)
    assert found["counterpoise_a_seconds", ""] == float("inf")
    assert found["counterpoise_b_total", r'reason="a \"quoted\" \\ back\nline"'] == 1.5
    assert "# HELP counterpoise_b_total Two\\nlines.\n" in text


def test_the_gauges_hold_the_watchs_figures() -> None:
    fresh = {"behind_days": 1, "sentence": "", "version": "v", "users": 7, "age_seconds": 60.0}
    fresh |= {"published_at": "2026-01-06T02:59:00+00:00", "scored_for": "2026-01-05"}
    drift = _drifted()
    drift["features"]["shares"] = [
        {
            "column": "item_id",
            "unseen_newest": 0.2,
            "unseen_training": 0.1,
            "missing_newest": 0.0,
            "missing_training": 0,
        }
    ]
    found = _found(freshness=fresh, drift=drift, quarantine={"now": {"is broken": 3}, "runs": []})
    gauges = parse(exposition(samples_of(found, {"rank": {"ended": 1000.0, "seconds": 2.5}})))
    assert gauges["counterpoise_lists_age_seconds", ""] == 60.0
    assert gauges["counterpoise_data_day_timestamp_seconds", ""] == 20458 * 86400
    assert gauges["counterpoise_lists_day_timestamp_seconds", ""] == 20458 * 86400
    assert gauges["counterpoise_lists_behind_days", ""] == 1.0
    assert gauges["counterpoise_stage_last_success_timestamp_seconds", 'stage="rank"'] == 1000.0
    assert gauges["counterpoise_listed_pcoc_ratio", 'task="click",bound="high"'] == 1.1
    assert gauges["counterpoise_quarantine_rows", 'reason="is broken"'] == 3.0
    assert gauges["counterpoise_drift_bits", 'part="features",column="price"'] == 0.05
    assert gauges["counterpoise_unseen_ratio", 'column="item_id"'] == 0.2
    assert not any("log_loss" in name for name, _ in gauges)  # it was not measured


def test_a_day_is_logged_once_whatever_a_rerun_measures(config: Config, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    client = tracking.connect(config, workspace)
    day = dt.date(2026, 1, 5)
    figures = mlflow_figures(_found(drift=_drifted()))
    figures[day]["pcoc/label @ 10"] = 0.5  # a sign that MLflow refuses in names
    count = tracking.log_days(config, client, figures)
    assert count == len(figures[day])
    assert tracking.log_days(config, client, {day: {"explained_share": 0.7, "alarms": 9.0}}) == 0
    assert tracking.log_days(config, client, {day + dt.timedelta(days=1): {"alarms": 1.0}}) == 1
    (run,) = client.search_runs([mlflow.get_experiment_by_name(config.tracking.experiment).experiment_id])
    assert run.info.run_name == "watch"
    history = client.get_metric_history(run.info.run_id, "alarms")
    assert [(metric.step, metric.value) for metric in history] == [(20458, 0.0), (20459, 1.0)]
    assert run.data.metrics["drift_bits/features/price"] == 0.05


def test_figures_of_a_night_are_logged_for_the_day_that_was_asked_for() -> None:
    fresh = {"behind_days": 1, "age_seconds": 90.0, "sentence": ""}
    quarantine = {"now": {"is broken": 3, "is late": 4}, "runs": []}
    stages = [*_stage(40.0, 61.5), {"stage": "rank", "seconds": {"0": 5.0, "1": None}, "usual": 5.0}]
    found = _found(freshness=fresh, quarantine=quarantine, stages=stages, asked_day="2026-01-06", drift=_drifted())
    figures = mlflow_figures(found)
    assert figures[dt.date(2026, 1, 6)] == {
        "alarms": 0.0,
        "quarantine_rows": 7.0,
        "lists_behind_days": 1.0,
        "lists_age_seconds": 90.0,
        "stage_seconds/train": 61.5,
    }
    assert figures[dt.date(2026, 1, 5)]["drift_bits/features/price"] == 0.05


@pytest.fixture(scope="module")
def ingested(
    simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Workspace]:
    """Return a workspace whose newest run failed before its first stage."""
    config = simulated_config.model_copy(update={"watch": Watch(days=2)})
    workspace = Workspace(tmp_path_factory.mktemp("half") / "workspace")
    ingest(config, workspace, simulated_source)
    return config, workspace


def test_a_watch_after_a_run_that_did_nothing_names_what_is_missing(ingested: tuple[Config, Workspace]) -> None:
    config, workspace = ingested
    outcome = watch(config, workspace, DAYS)
    (path,) = workspace.root.glob("runs/*/watch.json")
    found = json.loads(path.read_text())
    assert outcome.notes["lists"].startswith("Nothing was ever published to lmdb:feed: run ")
    assert [day["reason"] for day in found["days"]] == [f"no lists were published for 2026-01-0{day}" for day in (4, 5)]
    assert "`counterpoise featurize` has not ended" in found["drift"]["features"]["reason"]
    assert (
        outcome.rows_in
        == tables.scan(workspace.table("interactions"))
        .collect()["date"]
        .is_in([dt.date(2026, 1, 4), dt.date(2026, 1, 5)])
        .sum()
    )
    page = (workspace.root / "watch.html").read_text()
    assert "No lists were published for 2026-01-05." in page
    assert parse((workspace.root / "metrics.prom").read_text())["counterpoise_watch_alarms", ""] == 1.0
    assert not list(workspace.root.glob(".metrics*"))


def test_a_rerun_finds_the_same_and_logs_nothing_twice(ingested: tuple[Config, Workspace]) -> None:
    config, workspace = ingested
    watch(config, workspace, DAYS)
    again = watch(config, workspace, DAYS)
    assert again.notes["logged"] == 0
    first, second = observe(config, workspace, DAYS, NOW), observe(config, workspace, DAYS, NOW)
    assert first == second


def test_labels_whose_delay_cannot_be_fitted_are_a_reason_and_no_failure(ingested: tuple[Config, Workspace]) -> None:
    config, workspace = ingested
    weighted = config.model_copy(update={"labels": config.labels.model_copy(update={"immature": "weight"})})
    found = observe(weighted, workspace, DAYS, NOW)
    assert "'weight' fits the delay of conversions" in found["labels"]
    assert all("'weight' fits" in day["reason"] and day["impressions"] > 0 for day in found["days"])


def test_quarantine_is_counted_by_reason_as_each_run_found_it(
    ingested: tuple[Config, Workspace], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    for count in (1, 3):
        rows = pl.DataFrame({"reason": ["is broken"] * count})
        tables.write_all(workspace.table("quarantine"), rows, {})
    folders = [tmp_path / "runs" / name for name in ("2026-01-04-aa", "2026-01-05-aa")]
    (folders[0] / "features").mkdir(parents=True)
    write_json(folders[0] / "features" / "versions.json", {"quarantine": 0})
    found = quarantined(workspace, folders)
    assert found == {"now": {"is broken": 3}, "runs": [{"run": "2026-01-04-aa", "rows": {"is broken": 1}}]}
    assert quarantined(ingested[1], []) == {"now": {}, "runs": []}


def test_the_command_takes_the_options_of_a_stage(
    ingested: tuple[Config, Workspace], simulated_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    options = ["--source", str(simulated_source), "--workspace", str(ingested[1].root), "--date", "2026-01-05"]
    result = CliRunner().invoke(app, ["watch", *options, "--set", "source.time_zone=Asia/Shanghai"])
    assert result.exit_code == 0, result.output


def test_after_two_nights_the_lists_of_the_first_are_held_against_the_second(
    two_nights: tuple[Config, Workspace], tmp_path: Path
) -> None:
    config, workspace = two_nights[0], Workspace(tmp_path / "workspace")
    shutil.copytree(two_nights[1].root, workspace.root)
    outcome = watch(config, workspace, days_of(config, workspace, None))
    folder = max((workspace.root / "runs").iterdir())
    found = json.loads((folder / "watch.json").read_text())
    last = found["days"][-1]
    lists = pl.read_parquet(next(workspace.root.glob("published/2026-01-05-*/part-*.parquet")))
    shown = tables.scan(workspace.table("interactions")).filter(pl.col("date") == dt.date(2026, 1, 5)).collect()
    assert last["explained"] == shown.join(lists, on=["user_id", "item_id"]).height > 0
    assert outcome.rows_out == last["explained"]
    assert last["version"]["run"] == min((workspace.root / "runs").iterdir()).name
    assert found["freshness"]["sentence"].endswith(f"as new as the data: run {folder.name} made them.")
    assert found["drift"]["features"]["reason"] == "3 training days: 4 are needed for a noise floor"
    assert [one["stage"] for one in found["stages"]][:2] == ["featurize", "train"]
    assert "Published lists on their day" in (folder / "evaluation" / "report.html").read_text()


def _damaged_copies_of_six_days(workspace: Workspace) -> None:
    """Multiply a copy, and cut the middle out of each part."""
    copy = max(workspace.root.glob("published/*"))
    for day in range(1, 7):
        other = shutil.copytree(copy, copy.with_name(f"2026-01-0{day}-0123abcd"))
        record = json.loads((other / "version.json").read_text())
        published = f"2026-01-0{day}T02:00:00+00:00"
        write_json(other / "version.json", record | {"scored_for": f"2026-01-0{day}", "published_at": published})
    for part in workspace.root.glob("published/*/part-*.parquet"):
        content = part.read_bytes()
        part.write_bytes(content[: len(content) // 5] + content[len(content) // 2 :])


def test_copies_that_lost_their_middle_are_a_reason_and_no_failure(
    two_nights: tuple[Config, Workspace], tmp_path: Path
) -> None:
    config, workspace = two_nights[0], Workspace(tmp_path / "workspace")
    shutil.copytree(two_nights[1].root, workspace.root)
    _damaged_copies_of_six_days(workspace)
    found = observe(config, workspace, days_of(config, workspace, None), NOW, dt.date(2026, 1, 6))
    for reason in (found["labels"], found["days"][-1]["reason"], found["drift"]["predictions"]["reason"]):
        assert re.fullmatch(r"a file cannot be read \(.*\): `counterpoise doctor --deep` names it", reason)
    assert (found["asked_day"], found["freshness"]["behind_days"]) == ("2026-01-06", 1)


def test_a_watch_that_fails_too_does_not_take_the_place_of_the_failure_that_it_reports(
    ingested: tuple[Config, Workspace], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, workspace = ingested[0], Workspace(tmp_path / "workspace")
    shutil.copytree(ingested[1].root, workspace.root, ignore=shutil.ignore_patterns("watch.html"))
    (workspace.root / "watch.html").mkdir()
    with pytest.raises(ValueError, match="source nowhere is not a folder"):
        run(config, workspace, "nowhere", dt.date(2026, 1, 5))
    assert "watch: IsADirectoryError: " in caplog.text
