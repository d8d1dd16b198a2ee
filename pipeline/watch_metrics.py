"""The watch's figures for machines: MLflow metrics by day, and Prometheus' text exposition format."""

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

EXPOSED = "metrics.prom"
PREFIX = "counterpoise_"
TOLD_COLUMNS = 20
"""Drifted columns that are exposed, so that the number of series stays small."""


@dataclass(frozen=True)
class Sample:
    """A gauge: its name without the prefix and with its unit, its help, and its labels."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


def exposition(samples: Iterable[Sample]) -> str:
    """Write gauges as Prometheus text, format 0.0.4: HELP and TYPE once a name, its samples together, no timestamps."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    lines = []
    for name, group in sorted(by_name.items()):
        lines += [f"# HELP {PREFIX}{name} {_escaped(group[0].help)}", f"# TYPE {PREFIX}{name} gauge"]
        lines += [f"{PREFIX}{name}{_labels(sample)} {sample.value!r}" for sample in group]
    return "".join(f"{line}\n" for line in lines)


def _labels(sample: Sample) -> str:
    pairs = [f'{key}="{_escaped(value, quotes=True)}"' for key, value in sample.labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str, *, quotes: bool = False) -> str:
    plain = text.replace("\\", r"\\").replace("\n", r"\n")
    return plain.replace('"', r"\"") if quotes else plain


def samples_of(found: dict[str, Any], stages: dict[str, dict[str, Any]]) -> list[Sample]:
    """Return the gauges of a watch.

    Args:
        found: what watch.json holds.
        stages: when each stage last ended well and its seconds, see `pipeline.watch_state.last_success`.
    """
    watched = dt.datetime.fromisoformat(found["watched_at"]).timestamp()
    return [
        Sample("watch_last_success_timestamp_seconds", "When the watch ran.", watched),
        Sample("watch_alarms", "Alarms of the watch.", float(len(found["alarms"]))),
        Sample("data_day_timestamp_seconds", "Midnight UTC of the newest day of data.", _midnight(found["newest_day"])),
        *_stages(stages),
        *_lists(found["freshness"]),
        *_rates(found),
        *_drift(found["drift"]),
        *_refused(found["quarantine"]["now"]),
    ]


def _midnight(day: str) -> float:
    return dt.datetime.combine(dt.date.fromisoformat(day), dt.time(), dt.UTC).timestamp()


def _stages(stages: dict[str, dict[str, Any]]) -> Iterator[Sample]:
    for stage, entry in stages.items():
        labels = {"stage": stage}
        yield Sample("stage_last_success_timestamp_seconds", "When a stage last ended well.", entry["ended"], labels)
        yield Sample("stage_duration_seconds", "What its last success took.", float(entry["seconds"]), labels)


def _lists(fresh: dict[str, Any]) -> Iterator[Sample]:
    if "version" not in fresh:
        return
    published = dt.datetime.fromisoformat(fresh["published_at"]).timestamp()
    for_day = _midnight(fresh["scored_for"])
    yield Sample("lists_published_timestamp_seconds", "When the live lists were published.", published)
    yield Sample("lists_day_timestamp_seconds", "Midnight UTC of the day that the live lists are for.", for_day)
    yield Sample("lists_age_seconds", "Age of the live lists when the watch ran.", float(fresh["age_seconds"]))
    yield Sample("lists_behind_days", "Days the live lists lie behind the newest data.", float(fresh["behind_days"]))
    yield Sample("lists_users", "Users in the live lists.", float(fresh["users"]))


def _rates(found: dict[str, Any]) -> Iterator[Sample]:
    for task, figures in found["tasks"].items():
        labels = {"task": task}
        yield Sample("listed_impressions", "Listed impressions of the watched days.", float(figures["rows"]), labels)
        for name, told in (("pcoc", "Predicted over realised"), ("log_loss", "Log-loss")):
            if figures[name] is None:
                continue
            unit = "pcoc_ratio" if name == "pcoc" else "log_loss_nats"
            for bound in ("value", "low", "high"):
                yield Sample(
                    f"listed_{unit}",
                    f"{told} of the listed impressions of the watched days, with its 95 % interval.",
                    float(figures[name][bound]),
                    {**labels, "bound": bound},
                )
    for day in [day for day in found["days"] if "explained_share" in day][-1:]:
        yield Sample("explained_impressions_ratio", "Impressions of their user's list.", float(day["explained_share"]))
        yield Sample("listed_users_ratio", "Active users that had a list.", float(day["active_users_share"]))


def _drift(drift: dict[str, Any]) -> Iterator[Sample]:
    for part, found in drift.items():
        above = [one for one in found.get("columns", []) if one["excess"] > 0]
        if "columns" in found:
            yield Sample("drifted_columns", "Columns above their noise floor.", float(len(above)), {"part": part})
        for one in above[:TOLD_COLUMNS]:
            labels = {"part": part, "column": one["column"]}
            yield Sample("drift_bits", "Jensen-Shannon divergence of a drifted column.", one["divergence"], labels)
            yield Sample("drift_floor_bits", "Its noise floor.", one["floor"], labels)
    for one in drift["features"].get("shares", []):
        if one["column"] in {"user_id", "item_id"}:
            labels = {"column": one["column"]}
            yield Sample(
                "unseen_ratio", "Impressions of the newest day with an unseen id.", one["unseen_newest"], labels
            )


def _refused(rows: dict[str, int]) -> Iterator[Sample]:
    for reason, count in rows.items():
        yield Sample("quarantine_rows", "Rows in quarantine.", float(count), {"reason": reason})


def mlflow_figures(found: dict[str, Any]) -> dict[dt.date, dict[str, float]]:
    """Return figures of each watched day by name: of drift on the newest, of a night on the day that was asked for."""
    figures: dict[dt.date, dict[str, float]] = {}
    for day in found["days"]:
        named = figures.setdefault(dt.date.fromisoformat(day["day"]), {})
        named |= {key: float(day[key]) for key in ("explained_share", "active_users_share") if key in day}
        for task, of_task in day.get("tasks", {}).items():
            named |= {f"{name}/{task}": of_task[name]["value"] for name in ("pcoc", "log_loss") if of_task[name]}
    night = figures.setdefault(dt.date.fromisoformat(found["asked_day"]), {})
    night |= {"alarms": float(len(found["alarms"])), "quarantine_rows": float(sum(found["quarantine"]["now"].values()))}
    night |= {
        f"lists_{key}": float(found["freshness"][key])
        for key in ("behind_days", "age_seconds")
        if key in found["freshness"]
    }
    for stage in found["stages"]:
        seconds = list(stage["seconds"].values())[-1]
        night |= {} if seconds is None else {f"stage_seconds/{stage['stage']}": float(seconds)}
    newest = figures.setdefault(dt.date.fromisoformat(found["newest_day"]), {})
    for part, drift in found["drift"].items():
        newest |= {f"drift_bits/{part}/{one['column']}": one["divergence"] for one in drift.get("columns", [])}
    newest |= {
        f"unseen_share/{one['column']}": one["unseen_newest"]
        for one in found["drift"]["features"].get("shares", [])
        if "unseen_newest" in one
    }
    return figures
