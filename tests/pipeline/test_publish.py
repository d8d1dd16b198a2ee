"""Publishing a day's lists: what is refused, what is a no-op, and that what comes back is what was ranked."""

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import publish as publishing
from pipeline import tables, tracking
from pipeline.config import Config
from pipeline.featurize import run_folder
from pipeline.feed import Feed
from pipeline.feed_encode import batches, read_day
from pipeline.feed_lmdb import LmdbStore
from pipeline.feed_store import open_store
from pipeline.lineage import find_run, lineage
from pipeline.promotion import make_move, move_champion
from pipeline.publish import publish
from pipeline.report import feed_line
from pipeline.run_record import Job, execute
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.workspace import Workspace, write_json

DAY = dt.date(2026, 1, 5)
USERS, LENGTH = 40, 3


def _days(day: dt.date = DAY) -> Days:
    before = [day - dt.timedelta(days=n) for n in (3, 2, 1)]
    return Days([before[0]], [before[1]], [before[2]], day)


def _lists(day: dt.date = DAY, users: int = USERS, version: str = "3") -> pl.DataFrame:
    rows = [(f"u{user:03}", place, f"i{(user + 7 * place) % 30:02}") for user in range(users) for place in (1, 2, 3)]
    return pl.DataFrame(
        rows, schema={"user_id": pl.String, "rank": pl.Int32, "item_id": pl.String}, orient="row"
    ).select(
        "user_id",
        "rank",
        "item_id",
        p_click=(0.9 / pl.col("rank")).cast(pl.Float32),
        p_conversion=(0.001 / pl.col("rank")).cast(pl.Float32),
        score=123.4 / pl.col("rank"),
        scored_for=pl.lit(day),
        model_version=pl.lit(version),
    )


class Night:
    """A workspace with what a night leaves, to the lists."""

    def __init__(self, root: Path) -> None:
        self.config = Config.model_validate({"name": "small", "source": {"interactions": "log.*"}})
        self.workspace = Workspace(root)
        known = dt.datetime(2026, 1, 3, tzinfo=dt.UTC)
        clicks = pl.DataFrame({"item_id": ["i07"] * 3 + ["i02"] * 2 + ["i11", "gone"], "click_counted_at": known})
        rows = clicks.with_columns(date=pl.lit(dt.date(2026, 1, 3)))
        tables.write_days(self.workspace.table("interactions"), [rows], [dt.date(2026, 1, 3)], note={})

    def rank(self, lists: pl.DataFrame, day: dt.date = DAY, version: str = "3") -> None:
        """Leave lists as `rank` does."""
        index = run_folder(self.config, self.workspace, _days(day)) / "index"
        index.mkdir(parents=True, exist_ok=True)
        write_json(index / "model.json", {"version": version, "scored_for": str(day)})
        self.register(day, version)
        tables.write_days(self.workspace.table("candidates"), [lists], [day], column="scored_for", note={})

    def register(self, day: dt.date = DAY, version: str = "3", *, failed: Sequence[str] = ()) -> None:
        """Leave what `register` does, with the names of the checks that failed."""
        checks = [{"name": name, "verdict": "failed"} for name in failed]
        record = {"version": version, "decision_gate": "failed" if failed else "passed", "decision_checks": checks}
        write_json(self.folder(day) / "register.json", record)

    def folder(self, day: dt.date = DAY) -> Path:
        """Return the run's folder."""
        return run_folder(self.config, self.workspace, _days(day))

    def state(self, day: dt.date = DAY) -> dict[str, Any]:
        """Return what the run says of the lists that readers see."""
        state: dict[str, Any] = json.loads((self.folder(day) / "published.json").read_text())
        return state

    def publish(self, day: dt.date = DAY, *, force: bool = False) -> dict[str, Any]:
        """Publish and return what the stage has to say."""
        return publish(self.config, self.workspace, _days(day), force=force).notes

    def set(self, **feed: object) -> None:
        """Change keys of [feed]."""
        self.config = Config.model_validate({**self.config.model_dump(exclude_unset=True), "feed": feed})

    def feed(self) -> Feed:
        """Open what was published."""
        return Feed.open(self.config.feed.url, self.workspace.root)

    def copies(self) -> list[str]:
        """Return the names of the Parquet copies."""
        return sorted(path.name for path in (self.workspace.root / "published").iterdir())


@pytest.fixture
def night(tmp_path: Path) -> Night:
    night = Night(tmp_path)
    night.rank(_lists())
    return night


def test_lists_come_back_as_they_were_ranked_within_half_precision(night: Night) -> None:
    assert night.publish()["published"] == "yes"
    for (user,), ranked in _lists().partition_by("user_id", as_dict=True).items():
        (found,) = night.feed().lists([user])
        assert found.items == ranked["item_id"].to_list()
        for name in ("score", "p_click", "p_conversion"):
            assert found.outputs[name] == pytest.approx(ranked[name].to_list(), rel=2**-11)
    assert (found.version.scored_for, found.version.model_version) == ("2026-01-05", "3")
    assert found.version.run == run_folder(night.config, night.workspace, _days()).name


def test_propensities_and_what_was_explored_come_back_with_the_items(tmp_path: Path) -> None:
    night = Night(tmp_path)
    explored = (pl.col("rank") == 2) & (pl.col("user_id") < "u020")
    lists = _lists().with_columns(propensity=pl.when(explored).then(0.0033).otherwise(0.95), is_exploration=explored)
    night.rank(lists)
    night.set(fields=["propensity", "is_exploration"])
    night.publish()
    first, last = night.feed().lists(["u003", "u030"])
    assert first.outputs["propensity"] == pytest.approx([0.95, 0.0033, 0.95], rel=2**-11)
    assert (first.outputs["is_exploration"], last.outputs["is_exploration"]) == ([0, 1, 0], [0, 0, 0])


def test_the_fallback_list_has_the_items_of_the_lists_that_were_clicked_most(night: Night) -> None:
    night.set(fallback_length=4)
    night.publish()
    (found,) = night.feed().lists(["nobody"])
    assert (found.items, found.is_fallback) == (["i07", "i02", "i11", "i00"], True)


def test_the_same_lists_again_are_no_new_version(night: Night) -> None:
    first = night.publish()
    night.rank(_lists())  # the stage ran again: another commit of the same rows
    assert night.publish() == {**first, "published": "no, the same lists are there"}
    assert night.copies() == [first["version"]]


def test_lists_that_differ_in_one_value_are_a_new_version(night: Night) -> None:
    first = night.publish()
    score = pl.when((pl.col("user_id") == "u007") & (pl.col("rank") == 1)).then(130.0).otherwise("score")
    night.rank(_lists().with_columns(score=score))
    second = night.publish()
    assert second["published"] == "yes"
    assert night.copies() == sorted([first["version"], second["version"]])


def test_with_force_the_same_lists_are_published_again(night: Night) -> None:
    first = night.publish()
    assert night.publish(force=True)["version"] != first["version"]


def test_the_audit_copy_holds_the_rows_and_the_record(night: Night) -> None:
    folder = night.workspace.root / "published" / night.publish()["version"]
    columns = ["user_id", "rank"]
    assert pl.read_parquet(folder / "part-*.parquet").sort(columns).equals(_lists().sort(columns))
    record = json.loads((folder / "version.json").read_text())
    assert (record["store"], record["users"], record["candidates"]) == ("lmdb:feed", USERS, USERS * LENGTH)
    assert record["digest"] == night.feed().version.digest


def test_only_the_latest_audit_copies_stay(night: Night) -> None:
    night.set(audit_versions=2)
    made = [night.publish(force=True)["version"] for _ in range(4)]
    assert night.copies() == sorted(made[-2:])


def test_what_a_killed_publish_left_of_a_copy_goes(night: Night) -> None:
    first = night.publish()["version"]
    published = night.workspace.root / "published"
    never = {
        **json.loads((published / first / "version.json").read_text()),
        "published_at": "2100-01-01T00:00:00+00:00",
    }
    for name in (".2026-01-05-half.draft", "2026-01-05-never"):
        (published / name).mkdir()
        (published / name / "version.json").write_text(json.dumps(never))
    night.rank(_lists(version="4"), version="4")
    second = night.publish()["version"]
    assert night.copies() == sorted([first, second])


@pytest.mark.parametrize("rows", [1, 20, 1000])
def test_records_and_digest_do_not_depend_on_the_size_of_batches(rows: int) -> None:
    shuffled = _lists().sample(fraction=1, shuffle=True, seed=1)
    day = read_day(shuffled.lazy(), ["score"])
    digest, expected = publishing.Digest(day), publishing.Digest(day)
    records = []
    for batch in batches(day, rows):
        digest.update(batch)
        records += list(batch.records("name"))
    (whole,) = batches(day)
    expected.update(whole)
    assert records == list(whole.records("name"))
    assert digest.hexdigest(b"", "") == expected.hexdigest(b"", "")


def test_lists_of_different_lengths_keep_theirs(night: Night) -> None:
    night.rank(_lists().filter((pl.col("user_id") != "u005") | (pl.col("rank") == 1)))
    night.publish()
    found = night.feed().lists(["u004", "u005", "u006"])
    assert [len(one.items) for one in found] == [3, 1, 3]


def test_far_fewer_users_are_refused_unless_forced(night: Night) -> None:
    first = night.publish()
    night.rank(_lists(users=19))
    with pytest.raises(
        ValueError,
        match=r"19 users have lists, 40 have in .* or use `counterpoise publish --force`",
    ):
        night.publish()
    assert night.feed().version.name == first["version"]
    assert night.publish(force=True)["published"] == "yes"


def test_a_backfill_of_an_earlier_day_leaves_the_lists_unless_forced(night: Night) -> None:
    first = night.publish()
    earlier = DAY - dt.timedelta(days=1)
    night.rank(_lists(earlier), earlier)
    kept = "lists for 2026-01-05 are published, these are for 2026-01-04; they stay, `counterpoise publish --force`"
    told = night.publish(earlier)
    assert told == {**first, "published": f"no, {kept} goes back"}
    assert night.feed().version.name == first["version"]
    assert night.state(earlier)["kept"] == f"{kept} goes back"
    assert night.publish(earlier, force=True)["scored_for"] == "2026-01-04"
    assert night.state(earlier)["kept"] == ""


def _refused_night(night: Night) -> dt.date:
    """Publish, and leave the next night's lists of the same champion, whose own model the gate refused."""
    night.publish()
    later = DAY + dt.timedelta(days=1)
    night.rank(_lists(later), later)
    night.register(later, "4", failed=["click log-loss", "click GAUC", "click PCOC", "recall", "coverage"])
    return later


def test_where_the_gate_refuses_published_lists_stay_and_their_age_is_told(night: Night) -> None:
    later = _refused_night(night)
    live = night.feed().version
    told = night.publish(later)
    kept = (
        "the gate refused version 4 (failed: click log-loss, click GAUC, click PCOC, 2 more); lists for 2026-01-05, "
        "1 day old on 2026-01-06, stay"
    )
    assert told == {
        "scored_for": "2026-01-05",
        "version": live.name,
        "model_version": "3",
        "published": f"no, {kept}",
    }
    assert night.feed().version == live
    shown = {"version": live.name, "scored_for": "2026-01-05", "model_version": "3", "run": live.run}
    assert night.state(later) == {**shown, "store": "lmdb:feed", "kept": kept}


def test_where_the_gate_refuses_the_champions_lists_are_published_if_so_configured(night: Night) -> None:
    later = _refused_night(night)
    night.set(when_refused="champion")
    assert night.publish(later)["published"] == "yes"
    assert (night.feed().version.scored_for, night.feed().version.model_version) == ("2026-01-06", "3")


def test_a_refused_version_that_was_made_champion_by_hand_is_published(night: Night) -> None:
    later = _refused_night(night)
    night.rank(_lists(later, version="4"), later, version="4")
    night.register(later, "4", failed=["click log-loss"])
    assert night.publish(later)["published"] == "yes"


def test_where_nothing_was_published_a_refusal_says_that_readers_have_no_lists(night: Night) -> None:
    night.register(version="4", failed=["click log-loss"])
    told = night.publish()
    kept = "the gate refused version 4 (failed: click log-loss); nothing was published before: readers have no lists"
    assert told == {"scored_for": None, "version": None, "model_version": None, "published": f"no, {kept}"}
    assert feed_line(night.state()) == f"not published: {kept}"
    assert night.publish(force=True)["published"] == "yes"


def test_a_model_that_could_not_be_compared_leaves_the_champions_lists_to_be_published(night: Night) -> None:
    record = {"version": "4", "decision_gate": "not compared", "decision_checks": []}
    write_json(night.folder() / "register.json", record)
    assert night.publish()["published"] == "yes"
    assert feed_line(night.state()) == (
        f"published: lmdb:feed has version {night.feed().version.name}, lists for 2026-01-05 of model version 3"
    )


def _job(night: Night) -> Job:
    return Job(night.config, night.workspace, _days(), "source", frozenset(), lambda: "3")


def test_a_finished_publish_is_skipped_until_its_lists_its_settings_or_what_is_live_changed(night: Night) -> None:
    ran: list[dict[str, Any]] = []

    def stage() -> Outcome:
        done = publish(night.config, night.workspace, _days())
        ran.append(done.notes)
        return done

    for _ in range(2):
        execute(_job(night), "publish", stage)
    assert [one["published"] for one in ran] == ["yes"]
    night.rank(_lists(users=39))
    for _ in range(2):
        execute(_job(night), "publish", stage)
    assert [one["published"] for one in ran] == ["yes", "yes"]
    night.set(fallback_length=2)
    for _ in range(2):
        execute(_job(night), "publish", stage)
    assert len(ran) == 3
    night.publish(force=True)  # another version is live
    for _ in range(2):
        execute(_job(night), "publish", stage)
    assert ran[3:] == [{**ran[3], "published": "no, the same lists are there"}]


def test_a_published_version_is_traced_to_its_run_its_table_and_its_model(night: Night) -> None:
    name = night.publish()["version"]
    folder = find_run(night.workspace, name)
    assert folder == night.folder()
    published, lists, model, *_ = lineage(night.workspace, folder, name)
    assert published.startswith(f"published: version {name} to lmdb:feed at 20")
    assert published.endswith(": lists for 2026-01-05, from table candidates version 0, model version 3")
    assert lists.startswith("lists for 2026-01-05: 120 rows of 40 users")
    assert model == f"model: version 3, made by run {folder.name}"


def test_a_run_that_published_nothing_shows_what_readers_see(night: Night) -> None:
    later = _refused_night(night)
    night.publish(later)
    assert lineage(night.workspace, night.folder(later), night.folder(later).name)[0] == feed_line(night.state(later))


def test_lists_of_another_day_than_asked_are_refused(night: Night) -> None:
    later = DAY + dt.timedelta(days=1)
    night.rank(_lists(), DAY)
    index = run_folder(night.config, night.workspace, _days(later)) / "index"
    index.mkdir(parents=True)
    write_json(index / "model.json", {"version": "3", "scored_for": str(later)})
    night.register(later)
    with pytest.raises(ValueError, match=r"no lists for 2026-01-06 \(it holds 2026-01-05\): run `counterpoise rank`"):
        night.publish(later)
    write_json(index / "model.json", {"version": "3", "scored_for": str(DAY)})
    with pytest.raises(ValueError, match=r"index is for 2026-01-05, not 2026-01-06: run `counterpoise retrieve` again"):
        night.publish(later)


def test_without_candidates_the_stage_to_run_is_named(tmp_path: Path) -> None:
    night = Night(tmp_path)
    with pytest.raises(ValueError, match="run `counterpoise retrieve` first"):
        night.publish()
    night.rank(_lists())
    (night.folder() / "register.json").unlink()
    with pytest.raises(ValueError, match="run `counterpoise register` first"):
        night.publish()


def test_lists_of_another_model_than_the_index_are_refused(night: Night) -> None:
    night.rank(_lists(version="2"), version="3")
    with pytest.raises(ValueError, match=r"the lists for 2026-01-05 are of model version 2, .*index is of 3: run"):
        night.publish()


def test_a_field_that_the_lists_do_not_have_is_refused(night: Night) -> None:
    night.set(fields=["score", "p_like", "item_id"])
    with pytest.raises(ValueError, match=r"feed.fields names \['p_like', 'item_id'\].*\['p_click', "):
        night.publish()


def test_empty_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="the lists are empty: nothing was published, what was published before stays"):
        read_day(_lists().clear().lazy(), ["score"])


@pytest.mark.parametrize("user_id", ["", "x" * 512])
def test_a_user_id_that_is_no_key_is_refused(user_id: str) -> None:
    lists = _lists().with_columns(user_id=pl.lit(user_id))
    with pytest.raises(ValueError, match="cannot be a key: expected 1 to 511 bytes; change it in the source"):
        read_day(lists.lazy(), ["score"])


@pytest.mark.parametrize("value", [None, float("inf"), float("nan")])
def test_values_that_are_not_finite_are_refused(value: float | None) -> None:
    lists = _lists().with_columns(score=pl.lit(value, pl.Float64))
    with pytest.raises(ValueError, match=r"score of the lists is .*: expected finite numbers; run `counterpoise rank`"):
        read_day(lists.lazy(), ["score"])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_scores_of_any_size_keep_their_precision(tmp_path: Path, scale: float) -> None:
    night = Night(tmp_path)
    lists = _lists().with_columns(score=pl.col("score") * -scale)
    night.rank(lists)
    night.publish()
    (found,) = night.feed().lists(["u000"])
    assert found.outputs["score"] == pytest.approx(lists["score"][:3].to_list(), rel=2**-11)


def test_a_damaged_store_is_replaced_with_force(night: Night) -> None:
    name = night.publish()["version"]
    (night.workspace.root / "feed" / "versions" / name / "version.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .*: publish again with --force"):
        night.publish()
    night.publish(force=True)
    assert night.feed().lists(["u001"])[0].items == ["i08", "i15", "i22"]


def test_the_store_is_chosen_by_its_url(night: Night) -> None:
    night.set(url="lmdb:elsewhere/lists")
    version = night.publish()["version"]
    current = open_store("lmdb:elsewhere/lists", night.workspace.root).current()
    assert current is not None
    assert current.name == version


def _move(night: Night, version: str, before: str | None, by: str) -> None:
    """Make a version champion in the workspace's registry, with versions 1 to 6 of files that nobody reads."""
    client = tracking.connect(night.config, night.workspace)
    if before is None:
        client.create_registered_model("counterpoise")
        for _ in range(6):
            client.create_model_version("counterpoise", night.workspace.root.as_uri())
    move_champion(night.config, client, make_move(version, before, by=by, reason=""))


def test_after_a_rollback_the_lists_of_the_bad_model_are_replaced_although_the_gate_refused_the_nights(
    night: Night,
) -> None:
    _move(night, "2", None, "register")
    _move(night, "3", "2", "register")
    later = _refused_night(night)
    assert night.publish(later)["published"].startswith("no, the gate refused version 4")
    _move(night, "2", "3", "rollback")
    with pytest.raises(ValueError, match=r"of version 3, which a promote or rollback replaced .* with --from retrieve"):
        night.publish(later)
    night.rank(_lists(later, version="2"), later, version="2")
    night.register(later, "4", failed=["click log-loss"])
    assert night.publish(later)["published"] == "yes"
    assert night.feed().version.model_version == "2"


def test_lists_of_a_champion_that_a_better_model_replaced_stay_where_the_gate_refuses(night: Night) -> None:
    _move(night, "3", None, "register")
    later = _refused_night(night)
    _move(night, "5", "3", "register")
    night.rank(_lists(later, version="5"), later, version="5")
    night.register(later, "6", failed=["click log-loss"])
    assert night.publish(later)["published"].startswith("no, the gate refused version 6")
    _move(night, "3", "5", "rollback")  # nor do they go where their model is champion again
    night.rank(_lists(later), later)
    night.register(later, "6", failed=["click log-loss"])
    assert night.publish(later)["published"].startswith("no, the gate refused version 6")


def _fails(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_copy_of_lists_that_were_never_switched_to_has_no_name(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    first = night.publish()["version"]
    night.rank(_lists(version="4"), version="4")
    with monkeypatch.context() as patch:
        patch.setattr(LmdbStore, "switch", _fails)
        with pytest.raises(KeyboardInterrupt):
            night.publish()
    assert [name for name in night.copies() if not name.startswith(".")] == [first]
    assert len(night.copies()) == 2
    lines = lineage(night.workspace, night.folder(), night.folder().name)
    assert [line.split()[2] for line in lines if line.startswith("published: ")] == [first]
    earlier = DAY - dt.timedelta(days=1)
    night.rank(_lists(earlier), earlier)
    assert night.publish(earlier)["published"].startswith("no, lists for 2026-01-05 are published")
    assert night.copies() == [first]  # also where nothing is published


@pytest.mark.parametrize("force", [False, True])
def test_the_copy_of_lists_that_readers_see_gets_its_name_from_the_next_publish(
    night: Night, monkeypatch: pytest.MonkeyPatch, *, force: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "name_copy", _fails)
        with pytest.raises(KeyboardInterrupt):
            night.publish()
    live = night.feed().version.name
    assert night.copies() == [f".{live}.draft"]
    told = night.publish(force=force)
    assert night.copies() == sorted({live, told["version"]})
    assert (told["version"] == live) is not force


def test_a_publish_that_fails_while_it_writes_leaves_no_copy(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "batches", _fails)
    with pytest.raises(KeyboardInterrupt):
        night.publish()
    assert night.copies() == []


def test_stray_files_beside_versions_and_copies_disturb_no_publish(night: Night) -> None:
    first = night.publish()["version"]
    published, versions = night.workspace.root / "published", night.workspace.root / "feed" / "versions"
    stray = [folder / name for folder in (published, versions) for name in (".DS_Store", "notes.txt")]
    (published / "a folder").mkdir()
    for path in stray:
        path.write_text("")
    night.rank(_lists(version="4"), version="4")
    second = night.publish()["version"]
    assert all(path.exists() for path in stray)
    assert {first, second} < set(night.copies())


def test_a_version_that_was_published_before_is_traced_to_its_own_model_and_table(night: Night) -> None:
    first = night.publish()["version"]
    night.rank(_lists(version="4", users=30), version="4")
    second = night.publish()["version"]
    published, lists, model, *_ = lineage(night.workspace, find_run(night.workspace, first), first)
    assert published.startswith(f"published: version {first} to lmdb:feed")
    assert lists == "lists for 2026-01-05: 120 rows of 40 users, model version 3"
    assert model.startswith("model: version 3, ")
    of_run = lineage(night.workspace, night.folder(), night.folder().name)
    assert sum(line.startswith("published: ") for line in of_run) == 2
    assert "lists for 2026-01-05: 90 rows of 30 users, model version 4" in of_run
    assert lineage(night.workspace, night.folder(), second)[1] == of_run[2]
