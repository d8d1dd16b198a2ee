"""What was published for a day against what its impressions came to, a range of users at a time.

The audit copy of a version lies in parts of some million rows in the order of its users, so a range of users is a few
parts, read once, beside the day's impressions of these users, of which a scan reads the columns that are needed and
keeps one range. What leaves a range are sums by segment and by group of users: 256 groups for any number of users.
Measured on 4 million impressions, all listed, and 10 million list rows: 2.7 CPU-seconds a million impressions, 1.6 GiB
at the peak, and 0.1 CPU-seconds to find a range's users. So 10**8 impressions a day are some 100 ranges and 9
CPU-minutes for each watched day, in the same memory.
"""

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.calibrate import corrected_maturity
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.feed_copies import AUDIT
from pipeline.maturity import SUPERVISED, Maturity, supervise
from pipeline.popularity import UNSEEN, with_decile
from pipeline.segments import MISSING, OTHERS, SHOWN_VALUES, kinds_of
from pipeline.workspace import Workspace

GROUPS = 256
"""Groups of users by hash that the bootstrap draws: a standard error from so many is known to 1 / sqrt(512), 4 %."""
RANGE_ROWS = 1_000_000
"""Impressions of a range of users; it holds at least one part of the lists."""
ALL = "all"
CONTEXT, AT_REFERENCE, ELSEWHERE = "context", "at the reference", "elsewhere"
"""Whether an impression's context columns have the values that the lists were scored with; the hour is left aside."""
PREDICTED = {
    "click": "p_click",
    "click_and_conversion": "p_click_and_conversion",
    "conversion": "p_conversion",
}
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What reading a damaged file raises; on some damage polars panics, past Exception."""
KEYS = ["task", "segment", "value", "group"]


@dataclass(frozen=True)
class Copy:
    """The audit copy of a published version: its folder and its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def day(self) -> dt.date:
        """Return the day that the lists are for."""
        return dt.date.fromisoformat(self.record["scored_for"])

    @property
    def published_at(self) -> dt.datetime:
        """Return when it was published."""
        return dt.datetime.fromisoformat(self.record["published_at"])

    def items(self) -> int:
        """Return how many distinct items its lists hold."""
        catalogue = json.loads((self.folder / "catalogue.json").read_text(encoding="utf-8"))
        return len(catalogue["items"])

    def parts(self) -> list[Path]:
        """Return its files of rows, in the order of the users."""
        return sorted(self.folder.glob("part-*.parquet"))


@dataclass
class Realised:
    """What was published for a day and what came of it.

    Attributes:
        day: the day.
        copy: its lists; None where none were published for it.
        impressions: all of the day.
        explained: those whose item stood in the list of their user.
        users: with an impression on the day.
        users_with_list: those of them that had a list.
        immature: listed impressions that a task leaves out while their labels may change, by task.
        sums: by task, segment, value and group of users: rows, hits, positives, predicted, loss.
    """

    day: dt.date
    copy: Copy | None = None
    impressions: int = 0
    explained: int = 0
    users: int = 0
    users_with_list: int = 0
    immature: dict[str, int] = field(default_factory=dict)
    sums: list[pl.DataFrame] = field(default_factory=list)


@dataclass(frozen=True)
class Known:
    """The decile of every user and item that was known before a day."""

    users: pl.DataFrame
    items: pl.DataFrame


def copies(config: Config, workspace: Workspace) -> list[Copy]:
    """Return the audit copies of what was published to feed.url, the earliest first."""
    records = sorted((workspace.root / AUDIT).glob("[!.]*/version.json"))
    found = [Copy(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in records]
    return sorted((copy for copy in found if copy.record["store"] == config.feed.url), key=lambda one: one.published_at)


def copy_of(found: Sequence[Copy], day: dt.date, zone: str) -> Copy | None:
    """Return the version that readers saw at the end of the day that it is for; None where there is none for it.

    Where all were published after the day, as when the past is replayed, the last of them.
    """
    ended = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), tzinfo=ZoneInfo(zone))
    of_day = [copy for copy in found if copy.day == day]
    in_time = [copy for copy in of_day if copy.published_at < ended]
    chosen = in_time or of_day
    return chosen[-1] if chosen else None


def realised(config: Config, workspace: Workspace, days: list[dt.date]) -> tuple[list[Realised], str]:
    """Hold the impressions of some days against the lists that were published for them.

    Predictions are those of the lists, made at the context's reference values. Labels count as known today; those
    that may still change are corrected as calibrate corrects them.

    Returns:
        What came of each day, and how immature labels were treated: final, drop, weight or keep.

    Raises:
        ValueError: labels.immature = 'weight' has too few conversions to fit their delay on.
    """
    table = workspace.table("interactions")
    found, version = copies(config, workspace), tables.version(table)
    maturity = maturity_now(config, tables.scan(table, version), days)
    shown = shown_values(config, tables.scan(table, version).filter(pl.col("date").is_in(days)))
    known = [_known_counts(config, tables.scan(table, version), days, key) for key in ("user_id", "item_id")]
    results = []
    for number, day in enumerate(days):
        result = Realised(day, copy_of(found, day, config.source.time_zone))
        of_day = tables.scan(table, version).filter(pl.col("date") == day)
        result.impressions = of_day.select(pl.len()).collect().item()
        if result.copy is not None:
            deciles = Known(*(_deciles(counts, number) for counts in known))
            for parts, users in _ranges(result.copy, result.impressions):
                _add(config, result, (parts, of_day.filter(users)), (deciles, shown), maturity)
        results.append(result)
    return results, "final" if maturity is None else maturity.immature


def maturity_now(config: Config, interactions: pl.LazyFrame, days: list[dt.date]) -> Maturity | None:
    """Return how labels count that may still change as of the newest moment that the log knows; None if none may."""
    times = [pl.col(name).max() for name in ("received_time", "click_known_at", "conversion_known_at")]
    watched = interactions.filter(pl.col("date").is_in(days))
    newest, matures = watched.select(pl.max_horizontal(times), pl.col("label_matures_at").max()).collect().row(0)
    if matures <= newest:
        return None
    span = config.labels.click_window + config.labels.conversion_window
    fitted = interactions.filter(pl.col("date") >= days[0] - dt.timedelta(days=len(days)) - span)
    return corrected_maturity(config, fitted, newest + dt.timedelta(microseconds=1))


def shown_values(config: Config, rows: pl.LazyFrame) -> dict[str, list[str]]:
    """Return the most frequent values of each context column, as the segments show them."""
    found = {}
    for name in config.context.references():
        values = rows.select(pl.col(name).cast(pl.String).fill_null(MISSING).alias("value"))
        counts = values.group_by("value").len().sort(["len", "value"], descending=[True, False])
        found[name] = counts.head(SHOWN_VALUES).collect()["value"].to_list()
    return found


def _known_counts(config: Config, interactions: pl.LazyFrame, days: list[dt.date], key: str) -> pl.DataFrame:
    """Count the impressions of each key in one pass, by the first of the days before whose start they were known."""
    plan = plan_of(config)
    unknown = [(pl.col("date") >= day) | (pl.col("received_time") >= plan.start_of(day)) for day in days]
    counted = interactions.group_by(key, pl.sum_horizontal(unknown).alias("known_on")).len()
    return counted.filter(pl.col("known_on") < len(days)).collect(engine="streaming")


def _deciles(counts: pl.DataFrame, number: int) -> pl.DataFrame:
    key = counts.columns[0]
    known = counts.filter(pl.col("known_on") <= number).group_by(key).agg(pl.col("len").sum().alias("impressions"))
    return with_decile(known).select(key, "decile")


def _ranges(copy: Copy, impressions: int) -> Iterator[tuple[list[Path], pl.Expr]]:
    """Divide all users, those without a list too, into ranges of about RANGE_ROWS impressions."""
    parts, user = copy.parts(), pl.col("user_id")
    count = min(len(parts), max(1, -(-impressions // RANGE_ROWS)))
    groups = [group.tolist() for group in np.array_split(np.arange(len(parts)), count)]
    firsts = [pl.scan_parquet(parts[group[0]]).select(user.first()).collect().item() for group in groups]
    for number, group in enumerate(groups):
        mine = pl.lit(value=True) if number == 0 else user >= firsts[number]
        if number + 1 < len(groups):
            mine &= user < firsts[number + 1]
        yield [parts[place] for place in group], mine


def _add(
    config: Config,
    result: Realised,
    data: tuple[list[Path], pl.LazyFrame],
    about: tuple[Known, dict[str, list[str]]],
    maturity: Maturity | None,
) -> None:
    """Add a range of users to what came of a day."""
    (parts, impressions), (known, shown) = data, about
    rows = impressions.select("user_id", "item_id", *SUPERVISED, *shown).collect(engine="streaming")
    lists = pl.read_parquet(parts, columns=["user_id", "item_id", *PREDICTED.values()])
    listed = rows.join(lists, on=["user_id", "item_id"], how="inner", maintain_order="left")
    users = rows.select(pl.col("user_id").unique())
    result.users += users.height
    result.users_with_list += users.join(lists, on="user_id", how="semi").height
    result.explained += listed.height
    if listed.is_empty():
        return
    counted = _tasks(listed, maturity)
    for task, mask in counted.items():
        result.immature[task] = result.immature.get(task, 0) + mask[0]
    segments = _segments(config, listed, known, shown)
    result.sums += [_sums(task, segments, frame) for task, (_, frame) in counted.items()]


def _tasks(listed: pl.DataFrame, maturity: Maturity | None) -> dict[str, tuple[int, pl.DataFrame]]:
    """Return for each task how many rows it leaves out, and row number, target, prediction and loss of the others."""
    targets = supervise(listed, maturity).targets
    clicks, conversions = targets.clicks_B.numpy(), targets.conversions_B.numpy()
    on_click, on_both = targets.click_mask_B.numpy() > 0, targets.conversion_mask_B.numpy() > 0
    of_task = {
        "click": (clicks, on_click, on_click),
        "click_and_conversion": (clicks * conversions, on_both, on_both),
        "conversion": (conversions, on_both & (clicks > 0), on_both | (clicks == 0)),
    }
    found = {}
    for task, (target, mask, final) in of_task.items():
        predicted = listed[PREDICTED[task]].to_numpy().astype(np.float64)
        clipped = predicted.clip(np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
        loss = -(target * np.log(clipped) + (1 - target) * np.log1p(-clipped))
        values = {"target": target.astype(np.float64), "predicted": predicted, "loss": loss}
        frame = pl.DataFrame(values).with_row_index("row").filter(pl.Series(mask))
        found[task] = (int((~final).sum()), frame)
    return found


def _segments(config: Config, rows: pl.DataFrame, known: Known, shown: dict[str, list[str]]) -> pl.DataFrame:
    """Return the group of users and the value of every kind of segment of some rows."""
    activity, popularity = (
        rows.select(key).join(deciles, on=key, how="left", maintain_order="left")["decile"].fill_null(UNSEEN)
        for key, deciles in (("user_id", known.users), ("item_id", known.items))
    )
    kinds = kinds_of(rows, activity, popularity, list(config.context.references()))
    folded = [
        pl.when(pl.col(f"surface: {name}").is_in(values)).then(f"surface: {name}").otherwise(pl.lit(OTHERS))
        for name, values in shown.items()
    ]
    group = (rows["user_id"].hash(seed=0) % GROUPS).cast(pl.UInt32).alias("group")
    at_reference = pl.all_horizontal(
        pl.lit(value=True), *(pl.col(f"surface: {name}") == value for name, value in config.context.columns.items())
    )
    context = pl.when(at_reference).then(pl.lit(AT_REFERENCE)).otherwise(pl.lit(ELSEWHERE)).alias(CONTEXT)
    return kinds.with_columns(*folded, pl.lit(ALL).alias(ALL), context, group)


def _sums(task: str, segments: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    rows = pl.concat([segments[frame["row"]], frame.drop("row")], how="horizontal")
    parts = [
        rows.group_by(pl.col(kind).alias("value"), "group").agg(
            pl.len().alias("rows"),
            (pl.col("target") > 0).sum().alias("hits"),
            pl.col("target").sum().alias("positives"),
            pl.col("predicted").sum(),
            pl.col("loss").sum(),
        )
        for kind in segments.columns
        if kind != "group"
    ]
    kinds = [kind for kind in segments.columns if kind != "group"]
    named = [part.with_columns(segment=pl.lit(kind)) for kind, part in zip(kinds, parts, strict=True)]
    return pl.concat(named).with_columns(task=pl.lit(task))


def summed(results: Sequence[Realised]) -> pl.DataFrame | None:
    """Add up the sums of some days; None where no impression of them stood in a list."""
    parts = [part for result in results for part in result.sums]
    return pl.concat(parts).group_by(KEYS).sum().sort(KEYS) if parts else None
