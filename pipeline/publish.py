"""Publish: put a day's lists into the backend's store and switch to them at once, with a Parquet copy for audits.

Where they are not to be read, those that were published stay, and the run says why and how old they are.
"""

import datetime as dt
import hashlib
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import promotion, tables
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder
from pipeline.feed_copies import AUDIT, finish_copies, hidden_copy, keep_latest, name_copy
from pipeline.feed_encode import Day, Digest, batches, read_day
from pipeline.feed_records import FORMAT, Catalogue, Version
from pipeline.feed_store import Draft, Store, open_store
from pipeline.html_report import write_run_report
from pipeline.scoring import popularity
from pipeline.split import Days
from pipeline.stage import LOG, Outcome, progress
from pipeline.workspace import Workspace, read_json, write_json, write_parquet

STATE = "published.json"
"""In the run's folder: which lists readers see since this run, and why they are not its own."""
NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Live:
    """What readers see after a publish.

    Attributes:
        version: the record of the version, None where nothing was ever published.
        published: yes, or no and why.
        kept: why it is not of this run's lists;  where it is.
        candidates: rows that were looked at.
    """

    version: Version | None
    published: str
    kept: str = ""
    candidates: int = 0


@dataclass(frozen=True)
class Ready:
    """Lists that may be published.

    Attributes:
        day: the lists.
        catalogue: the ids of their items, and the fallback list.
        scored_for: their day.
        run: name of the run that made them.
        table_version: version of tables/candidates that holds them.
    """

    day: Day
    catalogue: bytes
    scored_for: dt.date
    run: str
    table_version: int

    def version(self, name: str, digest: str) -> Version:
        """Return the record of these lists under a name."""
        return Version(
            format=FORMAT,
            name=name,
            scored_for=str(self.scored_for),
            model_version=self.day.model_versions[0],
            run=self.run,
            candidates_version=self.table_version,
            fields=tuple(self.day.fields),
            scales=tuple(self.day.scales),
            users=len(self.day.users),
            candidates=self.day.candidates,
            digest=digest,
            catalogue_digest=hashlib.sha256(self.catalogue).hexdigest(),
            published_at=dt.datetime.now(dt.UTC).isoformat(timespec="microseconds"),
        )


def publish(config: Config, workspace: Workspace, days: Days, *, force: bool = False) -> Outcome:
    """Publish the lists of the serving day to feed.url, or say why those that are there stay.

    Readers see the version before or this one, never a mix; the one before stays readable until the next publish. The
    Parquet copy is `published/<version>/` in the workspace. published.json in the run's folder, and its report where
    it was evaluated, tell which lists are read. That lists stay is no failure: a backfill or a refused model is none.

    Args:
        config: names the store.
        workspace: holds the lists.
        days: the day that they are for.
        force: publish whatever stands in the store, such as a later day or many more users, and whatever the gate said.

    Raises:
        ValueError: there are no lists of that day or they are not of this run, they are of far fewer users than those
            that are published, or the store cannot be used.
    """
    folder = run_folder(config, workspace, days)
    live = _make_live(config, workspace, days, force=force)
    shown: dict[str, Any] = {"version": None, "model_version": None, "scored_for": None, "run": None}
    if live.version is not None:
        shown = {name: getattr(live.version, name) for name in ("model_version", "scored_for", "run")}
        shown |= {"version": live.version.name}
    write_json(folder / STATE, {**shown, "store": config.feed.url, "kept": live.kept})
    if (folder / "evaluation").exists():
        write_run_report(folder, folder / "evaluation" / "report.html")
    notes = {name: shown[name] for name in ("scored_for", "version", "model_version")}
    users = 0 if live.version is None else live.version.users
    return Outcome(live.candidates, users, {**notes, "published": live.published})


def _make_live(config: Config, workspace: Workspace, days: Days, *, force: bool) -> Live:
    store, audit = open_store(config.feed.url, workspace.root), workspace.root / AUDIT
    current = _current(store, force=force)
    finish_copies(audit, config.feed.url, current)
    kept = None if force else why_kept(config, workspace, days, current)
    if kept is not None:
        return Live(version=current, published=f"no, {kept}", kept=kept)
    ready = find_lists(config, workspace, days)
    if current is not None and not force:
        if _is_same(ready, current):
            return Live(version=current, published="no, the same lists are there", candidates=ready.day.candidates)
        check_users(ready, current, config.feed.min_users_share)
    version = write_version(ready, store, config.feed.url, audit)
    keep_latest(audit, config.feed.audit_versions)
    return Live(version=version, published="yes", candidates=ready.day.candidates)


def _current(store: Store, *, force: bool) -> Version | None:
    """Return what readers see; where its record is lost or damaged, `--force` replaces it."""
    try:
        return store.current()
    except ValueError as error:
        if not force:
            raise
        LOG.warning("publish: %s", error)
        return None


def why_kept(config: Config, workspace: Workspace, days: Days, current: Version | None) -> str | None:
    """Say why the published lists stay; None where those of this run shall take their place.

    Lists of a model that its gate refused are none: they are of the champion, and stay back unless feed.when_refused
    says otherwise. Where the refused version was made champion by hand, its lists are what is asked for. Nor do lists
    stay whose own model was champion until a promote or a rollback: whoever gave that command wants them replaced.

    Raises:
        ValueError: retrieve or register has not run, or these lists are of a model that was rolled back meanwhile.
    """
    folder = run_folder(config, workspace, days)
    made = read_json(folder / "index" / "model.json", "retrieve")
    registered = read_json(folder / "register.json", "register")
    day = str(days.scored_for)
    if current is not None and day < current.scored_for:
        return (
            f"lists for {current.scored_for} are published, these are for {day}; they stay, `counterpoise publish "
            "--force` goes back"
        )
    withdrawn = promotion.withdrawn(config, workspace)
    if made["version"] in withdrawn:
        raise ValueError(
            f"the lists for {day} are of version {made['version']}, which a promote or rollback replaced since "
            "they were retrieved: give the night's command again with --from retrieve"
        )
    refused = registered.get("decision_gate") == "failed" and made["version"] != registered["version"]
    if not refused or config.feed.when_refused == "champion":
        return None
    if current is not None and current.model_version in withdrawn:
        return None
    if current is None:
        stay = "nothing was published before: readers have no lists"
    else:
        age = current.age_days(days.scored_for)
        stay = f"lists for {current.scored_for}, {age} day{'' if age == 1 else 's'} old on {day}, stay"
    return f"the gate refused version {registered['version']} ({_failed(registered)}); {stay}"


def _failed(registered: dict[str, Any]) -> str:
    """Name the first checks that failed, and how many more did."""
    names = [check["name"] for check in registered["decision_checks"] if check["verdict"] == "failed"]
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return f"failed: {', '.join(names[:NAMED] + more)}"


def find_lists(config: Config, workspace: Workspace, days: Days) -> Ready:
    """Gather the lists of the serving day.

    Raises:
        ValueError: the run made none, the table holds others, or they cannot be encoded.
    """
    table, day = workspace.table("candidates"), days.scored_for
    folder = run_folder(config, workspace, days)
    made = read_json(folder / "index" / "model.json", "retrieve")
    if made["scored_for"] != str(day):
        raise ValueError(
            f"{folder / 'index'} is for {made['scored_for']}, not {day}: run `counterpoise retrieve` again"
        )
    present = tables.days(table, "scored_for")
    if day not in present:
        raise ValueError(
            f"tables/candidates holds no lists for {day} (it holds {', '.join(map(str, present)) or 'none'}): "
            "run `counterpoise rank` with the same options first"
        )
    number = tables.version(table)
    lists = read_day(tables.scan(table, number).filter(pl.col("scored_for") == day), config.feed.fields)
    if lists.model_versions != [made["version"]]:
        raise ValueError(
            f"the lists for {day} are of model version {', '.join(lists.model_versions)}, {folder / 'index'} is of "
            f"{made['version']}: run `counterpoise rank` again"
        )
    catalogue = Catalogue(lists.items.to_list(), _fallback(config, workspace, lists, day)).to_json()
    return Ready(lists, catalogue, day, folder.name, number)


def _fallback(config: Config, workspace: Workspace, lists: Day, day: dt.date) -> list[int]:
    """Return the numbers of the items that were clicked most before the day, of those that its lists hold."""
    history = tables.scan(workspace.table("interactions")).filter(pl.col("date") < day)
    ranked = popularity(history, lists.items.to_frame(), day, plan_of(config).start_of(day))
    return [int(number) for number in ranked[: config.feed.fallback_length]]


def check_users(ready: Ready, current: Version, min_users_share: float) -> None:
    """Refuse lists of far fewer users than have published ones.

    Raises:
        ValueError: they are.
    """
    users = len(ready.day.users)
    if users < min_users_share * current.users:
        raise ValueError(
            f"{users:,} users have lists, {current.users:,} have in the published version {current.name}: less than "
            f"feed.min_users_share = {min_users_share}; find out where they went, or use `counterpoise publish --force`"
        )


def _is_same(ready: Ready, current: Version) -> bool:
    """Return whether these lists are published; reads them only where their day and counts are the same."""
    known = ready.version(current.name, current.digest)
    alike = ("scored_for", "model_version", "users", "candidates", "fields", "scales", "catalogue_digest")
    if any(getattr(known, name) != getattr(current, name) for name in alike):
        return False
    digest = Digest(ready.day)
    for batch in batches(ready.day):
        digest.update(batch)
    return digest.hexdigest(ready.catalogue, str(ready.scored_for)) == current.digest


def write_version(ready: Ready, store: Store, url: str, audit: Path) -> Version:
    """Write the lists into a store and a hidden copy, switch, and name the copy; return the version's record.

    Where the switch fails the copy stays hidden: from the store `finish_copies` of the next publish tells what to do.
    """
    name = f"{ready.scored_for}-{secrets.token_hex(4)}"
    with store.draft(name, len(ready.day.users), ready.day.size_bytes()) as draft:
        with hidden_copy(audit, name) as copy:
            version = ready.version(name, _write_batches(ready, draft, name, copy))
            write_json(copy / "version.json", {**asdict(version), "store": url})
            (copy / "catalogue.json").write_bytes(ready.catalogue)
        draft.publish(version, ready.catalogue)
    name_copy(audit, name)
    return version


def _write_batches(ready: Ready, draft: Draft, name: str, copy: Path) -> str:
    """Write all lists and return their digest."""
    digest = Digest(ready.day)
    for number, batch in enumerate(progress(batches(ready.day), "publish")):
        digest.update(batch)
        draft.put(batch.records(name))
        write_parquet(batch.frame, copy / f"part-{number:05}.parquet")
    return digest.hexdigest(ready.catalogue, str(ready.scored_for))
