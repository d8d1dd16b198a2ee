"""The doctor: a healthy workspace has no finding, and each thing that breaks has its sentence."""

import datetime as dt
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipeline import doctor, tables
from pipeline.__main__ import app
from pipeline.config import Config
from pipeline.doctor import examine, lock_holder
from pipeline.doctor_feed import check_published, leftovers
from pipeline.doctor_runs import check_champion, check_runs, records_here
from pipeline.doctor_tables import check_days, check_orphans, check_stores, check_tables, check_versions
from pipeline.finding import Finding
from pipeline.workspace import Workspace, read_json, write_json

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
DAYS = (dt.date(2026, 1, 4), dt.date(2026, 1, 5))


@pytest.fixture
def place(two_nights: tuple[Config, Workspace], tmp_path: Path) -> tuple[Config, Workspace]:
    """Return a copy of the workspace, to be broken."""
    shutil.copytree(two_nights[1].root, tmp_path / "workspace")
    return two_nights[0], Workspace(tmp_path / "workspace")


def _problems(findings: Iterator[Finding] | list[Finding]) -> str:
    return "\n".join(finding.sentence for finding in findings if not finding.ok)


def _snapshot(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def _newest(workspace: Workspace) -> Path:
    return max((workspace.root / "runs").iterdir())


def _data_file(path: Path) -> Path:
    day = max(tables.day_files(path, column="scored_for" if path.name == "candidates" else "date"))
    return tables.day_files(path, column="scored_for" if path.name == "candidates" else "date")[day][0]


@pytest.mark.parametrize("deep", [False, True])
def test_a_healthy_workspace_has_no_problem_and_is_not_written_to(
    two_nights: tuple[Config, Workspace], *, deep: bool
) -> None:
    before = _snapshot(two_nights[1].root)
    findings = examine(*two_nights, deep=deep)
    assert _problems(findings) == ""
    assert len(findings) > 25
    assert _snapshot(two_nights[1].root) == before


def test_it_runs_beside_a_writer_and_names_it(two_nights: tuple[Config, Workspace]) -> None:
    with two_nights[1].lock("train"):
        told = {finding.check: finding.sentence for finding in examine(*two_nights)}
    assert "(counterpoise train): what looks half-made may be its work" in told["lock"]
    assert lock_holder(two_nights[1].root / ".lock") is None


def test_a_lock_of_a_killed_process_is_not_held(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from pipeline.workspace import Workspace\n"
        f"with Workspace(Path({str(tmp_path)!r})).lock('rank'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert "counterpoise rank" in (tmp_path / ".lock").read_text()
    assert lock_holder(tmp_path / ".lock") is None


def test_without_locks_of_the_system_the_file_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOCKS", tmp_path / "none")
    (tmp_path / ".lock").write_text("process 1 (counterpoise run)")
    assert lock_holder(tmp_path / ".lock") == "process 1 (counterpoise run)"


def test_no_workspace_is_an_error_of_the_user(two_nights: tuple[Config, Workspace], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no workspace, it has no tables/: correct --workspace, or run ingest"):
        examine(two_nights[0], Workspace(tmp_path))


def _remove(path: Path) -> None:
    _data_file(path).unlink()


def _cut(path: Path) -> None:
    file = _data_file(path)
    file.write_bytes(file.read_bytes()[:-200])


def _fewer_rows(path: Path) -> None:
    file = _data_file(path)
    pl.read_parquet(file).head(3).write_parquet(file)


def _other_column(path: Path) -> None:
    file = _data_file(path)
    pl.read_parquet(file).rename({"item_id": "thing"}).write_parquet(file)


def _broken_log(path: Path) -> None:
    for log in (path / "_delta_log").iterdir():
        log.write_text("{")


@pytest.mark.parametrize("table", ["interactions", "candidates"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_remove, r"is gone, and version \d+ needs it: restore"),
        (_cut, "cannot be read"),
        (_fewer_rows, r"holds 3 rows, the log says [\d,]+: restore the workspace from a backup"),
        (_other_column, r"has the columns \['thing'\], which the table has not"),
        (_broken_log, "cannot be opened"),
    ],
)
def test_damage_of_a_table_is_found(
    place: tuple[Config, Workspace], table: str, damage: Callable[[Path], None], sentence: str
) -> None:
    config, workspace = place
    damage(workspace.table(table))
    findings = [one for one in check_tables(config, workspace, deep=False) if not one.ok]
    assert {one.check for one in findings} == {f"tables/{table}"}
    assert re.search(sentence, _problems(findings))


def test_damaged_pages_are_found_by_a_deep_look_only(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    file = _data_file(workspace.table("interactions"))
    content = bytearray(file.read_bytes())
    content[100:400] = bytes(300)
    file.write_bytes(content)
    assert _problems(check_tables(config, workspace, deep=False)) == ""
    assert "cannot be read" in _problems(check_tables(config, workspace, deep=True))


def test_rows_that_stand_twice_in_a_day_are_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    table = workspace.table("examples")
    rows = tables.scan(table).filter(pl.col("date") == DAYS[1]).collect()
    tables.write_days(table, [pl.concat([rows, rows.head(5)])], [DAYS[1]], note={})
    assert "2026-01-05 holds 5 rows twice" in _problems(check_tables(config, workspace, deep=True))
    assert "the interactions have 400: a day that stands twice" in _problems(check_days(workspace))


def test_a_table_of_another_configuration_is_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    other = config.model_copy(update={"context": config.context.model_copy(update={"columns": {"surface": "home"}})})
    told = _problems(check_tables(other, workspace, deep=False))
    assert "it differs from this configuration in the columns ['position']: give the --config" in told


def test_a_workspace_without_interactions_is_told_to_ingest(tmp_path: Path) -> None:
    assert "run `counterpoise ingest` first" in _problems(check_days(Workspace(tmp_path)))


def test_orphans_are_counted_with_their_bytes(place: tuple[Config, Workspace]) -> None:
    _, workspace = place
    folder = workspace.table("examples") / "date=2026-01-05"
    (folder / "part-00000-lost.parquet").write_bytes(b"x" * 1000)
    (folder / "part-00001-lost.parquet.draft").write_bytes(b"x" * 234)
    problem = [one for one in check_orphans(workspace) if not one.ok]
    assert [one.check for one in problem] == ["orphans of tables/examples"]
    assert "2 files of 1,234 bytes belong to no version: `counterpoise vacuum` removes them" in problem[0].sentence


def test_a_version_that_a_run_a_model_or_a_list_names_and_that_is_gone_is_found(
    place: tuple[Config, Workspace],
) -> None:
    config, workspace = place
    first = min((workspace.root / "runs").iterdir())
    version = read_json(first / "features" / "versions.json", "featurize")["examples"]
    assert version < tables.version(workspace.table("examples"))
    for log in (workspace.table("examples") / "_delta_log").glob(f"*{version}.json"):
        log.unlink()
    told = _problems(check_versions(workspace, records_here(config, workspace)))
    assert f"version {version} of tables/examples is gone" in told
    assert f"run {first.name}" in told
    assert f"the registered model of run {first.name}" in told


def test_files_of_a_version_that_lists_were_published_from_are_missed(place: tuple[Config, Workspace]) -> None:
    _, workspace = place
    record = read_json(
        next(workspace.root.glob(f"published/{DAYS[1] + dt.timedelta(days=1)}*/version.json")), "publish"
    )
    _data_file(workspace.table("candidates")).unlink()
    told = _problems(check_versions(workspace, []))
    assert f"version {record['candidates_version']} of tables/candidates is gone (1 of 2 files are missing)" in told
    assert f"the published version {record['name']}" in told


def test_a_damaged_feature_store_is_found(place: tuple[Config, Workspace]) -> None:
    _, workspace = place
    (store,) = (workspace.root / "features").iterdir()
    state = next(store.glob("states/*/counter-*.parquet"))
    state.write_bytes(b"PAR1")
    told = _problems(check_stores(workspace))
    assert f"{state.relative_to(store).as_posix()} cannot be read" in told
    assert f"remove features/{store.name}, and featurize makes it again" in told
    ledger = json.loads((store / "ledger.json").read_text())
    ledger["features"]["2025-12-31"] = "0"
    write_json(store / "ledger.json", ledger)
    assert "2025-12-31 is in its ledger and not in its features" in _problems(check_stores(workspace))
    (store / "ledger.json").write_text("{")
    assert "ledger.json cannot be read" in _problems(check_stores(workspace))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model/ranker/weights.safetensors", "model/ranker/weights.safetensors of train has another sha256"),
        ("evaluation/evaluation.json", "evaluation/evaluation.json of evaluate has another sha256 than recorded"),
        ("register.json", "run `counterpoise register --force` for that day again"),
        ("index/items.faiss", "index/items.faiss of retrieve has another sha256"),
    ],
)
def test_a_file_that_is_not_what_its_stage_recorded_is_found(
    place: tuple[Config, Workspace], name: str, sentence: str
) -> None:
    file = _newest(place[1]) / name
    file.write_bytes(file.read_bytes() + b" ")
    assert sentence in _problems(check_runs(place[1]))
    file.unlink()
    assert f"{name} of" in _problems(check_runs(place[1]))
    assert "is gone: restore it" in _problems(check_runs(place[1]))


def test_an_evaluation_of_another_model_is_found(place: tuple[Config, Workspace]) -> None:
    folder = _newest(place[1])
    training = read_json(folder / "model" / "training.json", "train")
    training["digests"]["ranker"] = "0" * 64
    write_json(folder / "model" / "training.json", training)
    told = _problems(check_runs(place[1]))
    assert "evaluate was made from another model/training.json than what is there now" in told
    assert "model/ranker is of other weights than model/training.json names" in told


def test_a_record_that_cannot_be_read_is_found(place: tuple[Config, Workspace]) -> None:
    (_newest(place[1]) / "record.json").write_text("{")
    assert "record.json cannot be read" in _problems(check_runs(place[1]))


def test_champion_files_that_are_not_what_was_registered_are_found(two_nights: tuple[Config, Workspace]) -> None:
    config, workspace = two_nights
    files = [
        path for path in workspace.root.glob("mlartifacts/**/ranker/weights.safetensors") if "models" in path.parts
    ]
    kept = {path: path.read_bytes() for path in files}
    try:
        for path in files:
            path.write_bytes(b"x" + kept[path][1:])
        told = _problems(check_champion(config, workspace))
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert files
    assert "are not those that were registered (sha256 differs)" in told
    assert "`counterpoise rollback` goes to the one before" in told


def test_lists_without_any_champion_are_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    other = config.model_copy(update={"tracking": config.tracking.model_copy(update={"model": "another"})})
    assert "no version of 'another' is champion" in _problems(check_champion(other, workspace))
    (workspace.root / "mlflow.db").unlink()
    assert "no version of 'counterpoise' is champion" in _problems(check_champion(config, workspace))
    assert records_here(config, workspace) == []
    assert not (workspace.root / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("towers", "0" * 64, "was built by towers 000000000000, the model has"),
        ("width", 7, r"holds (50, 64, 'inner_product'), expected (50, 7, 'inner_product')"),
        ("items", 49, r"expected (49, 64, 'inner_product'): run `counterpoise retrieve` again"),
    ],
)
def test_an_index_that_does_not_match_the_model_is_found(
    place: tuple[Config, Workspace], key: str, value: object, sentence: str
) -> None:
    config, workspace = place
    path = _newest(workspace) / "index" / "index.json"
    write_json(path, {**read_json(path, "retrieve"), key: value})
    assert sentence in _problems(check_champion(config, workspace))


def test_an_index_of_another_version_is_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    path = _newest(workspace) / "index" / "model.json"
    write_json(path, {**read_json(path, "retrieve"), "version": "9"})
    told = _problems(check_champion(config, workspace))
    assert "it is of version 9, the champion is" in told
    assert "the next `counterpoise retrieve` makes it again" in told


def _live_copy(workspace: Workspace) -> Path:
    name = (workspace.root / "feed" / "current").read_text().split("\n")[0]
    return workspace.root / "published" / name


def test_a_copy_that_is_not_what_was_published_is_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    part = _live_copy(workspace) / "part-00000.parquet"
    rows = pl.read_parquet(part)
    rows.with_columns(score=pl.col("score") * 2).write_parquet(part)
    assert "(the digest differs): publish that day again" in _problems(check_published(config, workspace, deep=False))
    rows.with_columns(rank=pl.max("rank").over("user_id") + 1 - pl.col("rank")).write_parquet(part)
    assert "is not its copy, the list of user" in _problems(check_published(config, workspace, deep=False))
    part.write_bytes(b"PAR1")
    assert "cannot be read" in _problems(check_published(config, workspace, deep=False))
    part.unlink()
    assert "catalogue.json or its rows are gone" in _problems(check_published(config, workspace, deep=False))


def test_copies_of_earlier_versions_are_read_by_a_deep_look(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    (earlier,) = [path for path in (workspace.root / "published").iterdir() if path != _live_copy(workspace)]
    part = earlier / "part-00000.parquet"
    pl.read_parquet(part).with_columns(score=pl.col("score") * 2).write_parquet(part)
    assert _problems(check_published(config, workspace, deep=False)) == ""
    assert "the digest differs" in _problems(check_published(config, workspace, deep=True))


def test_copies_that_lost_their_middle_are_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    for part in workspace.root.glob("published/*/part-*.parquet"):
        content = part.read_bytes()
        part.write_bytes(content[: len(content) // 5] + content[len(content) // 2 :])
    findings = [one for one in check_published(config, workspace, deep=True) if not one.ok]
    assert len([one for one in findings if "its rows cannot be read" in one.sentence]) == 2
    assert "cannot be read" in findings[0].sentence


def test_a_panic_of_a_reader_ends_one_check_only() -> None:
    def panics() -> Iterator[Finding]:
        raise pl.exceptions.PanicException("index out of bounds")
        yield

    (found,) = doctor.to_its_end("days", panics)
    assert found.sentence.startswith("this check came to no end (index out of bounds)")


def test_a_live_version_that_cannot_be_read_is_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    live = workspace.root / "feed" / "versions" / _live_copy(workspace).name
    lists = (live / "lists.mdb").read_bytes()
    (live / "lists.mdb").write_bytes(lists[:-4096] + bytes(4096))
    assert "is damaged" in _problems(check_published(config, workspace, deep=False))
    (live / "version.json").write_text("{")
    assert "is damaged" in _problems(check_published(config, workspace, deep=False))


def test_a_live_version_without_a_copy_and_a_lost_feed_are_found(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    shutil.rmtree(_live_copy(workspace))
    assert "is live and has no copy in published/" in _problems(check_published(config, workspace, deep=False))
    shutil.rmtree(workspace.root / "feed")
    told = _problems(check_published(config, workspace, deep=False))
    assert "1 copies are kept, and nothing is in lmdb:feed: run `counterpoise publish --force`" in told


def test_documents_that_are_no_json_are_named_and_keep_no_other_check_from_its_end(
    place: tuple[Config, Workspace],
) -> None:
    config, workspace = place
    broken = [path for part in ("runs", "published") for path in (workspace.root / part).rglob("*.json")]
    for path in broken:
        path.write_text("{")
    _broken_log(workspace.table("interactions"))
    findings = examine(config, workspace, deep=True)
    named = "\n".join(finding.sentence for finding in findings if finding.check == "documents")
    assert all(path.relative_to(workspace.root).as_posix() in named for path in broken if "model/" not in str(path))
    checks = {finding.check for finding in findings}
    assert checks >= {"tables/interactions", "days", "versions", "feed", "lock", "space"}
    assert "this check came to no end" in _problems(findings)


def test_a_registry_that_does_not_answer_is_a_finding(two_nights: tuple[Config, Workspace], tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = two_nights[0].tracking.model_copy(update={"uri": uri})
    told = _problems(examine(two_nights[0].model_copy(update={"tracking": tracking}), two_nights[1]))
    assert f"tracking store {uri} does not answer" in told


def test_a_registry_that_is_not_there_is_not_made(two_nights: tuple[Config, Workspace], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = two_nights[0].tracking.model_copy(update={"uri": uri})
    told = _problems(check_champion(two_nights[0].model_copy(update={"tracking": tracking}), two_nights[1]))
    assert "no version of 'counterpoise' is champion" in told
    assert not (tmp_path / "mlflow.db").exists()


def test_what_killed_commands_left_is_listed(place: tuple[Config, Workspace]) -> None:
    config, workspace = place
    left = [
        "runs/.2026-01-01-aa",
        f"runs/{_newest(workspace).name}/.index.draft",
        "published/.2026-01-05-0123abcd",
        "feed/versions/.2026-01-05-0123abcd",
        "tables/.spill-1",
        ".champion",
    ]
    for name in left:
        (workspace.root / name).mkdir()
    assert {path.relative_to(workspace.root).as_posix() for path in leftovers(workspace)} == set(left)
    told = _problems(examine(config, workspace))
    assert "killed commands left .champion, " in told


def test_too_little_space_for_another_night_is_told(
    two_nights: tuple[Config, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(two_nights[1].root)._replace(free=1000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    told = _problems(doctor.check_place(two_nights[1]))
    assert "0 MiB are free, the last run takes" in told
    assert "run `counterpoise vacuum`, or make room" in told


def test_the_command_prints_a_line_a_check_and_ends_with_two_where_there_is_a_problem(
    place: tuple[Config, Workspace],
) -> None:
    workspace = place[1]
    options = ["doctor", "--config", str(EXAMPLE), "--workspace", str(workspace.root)]
    options += ["--set", "source.time_zone=Asia/Shanghai"]
    done = CliRunner().invoke(app, options)
    assert (done.exit_code, done.output.splitlines()[-1].split(", ")[1]) == (0, "0 problems")
    assert "ok      champion: version" in done.output
    _data_file(workspace.table("examples")).unlink()
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert "problem tables/examples: date=2026-01-05/" in done.output
