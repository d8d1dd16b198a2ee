"""Alarms of the watch: each a sentence with its figure and its limit."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.watch_section import Watch
from pipeline.watch_state import LEAST_SECONDS


@dataclass(frozen=True)
class WatchAlarm:
    """What is beyond its limit."""

    name: str
    sentence: str
    figure: float | None
    limit: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def alarms_of(limits: Watch, found: dict[str, Any]) -> list[WatchAlarm]:
    """Return every alarm of a watch's figures, that of the lists' age first."""
    return [
        *_age(limits, found["freshness"]),
        *_calibration(limits, found["at_reference"]),
        *_coverage(limits, found["days"]),
        *_drift(limits, found["drift"]),
        *_shares(limits, found["drift"]["features"].get("shares", [])),
        *_slow(limits, found["stages"]),
    ]


def _age(limits: Watch, fresh: dict[str, Any]) -> Iterator[WatchAlarm]:
    behind, limit = fresh.get("behind_days"), limits.max_behind_days
    if behind is None:
        yield WatchAlarm("no lists", fresh["sentence"], None, None)
    elif behind > limit:
        sentence = f"{fresh['sentence']} At most {limit} days are allowed (watch.max_behind_days)."
        yield WatchAlarm("old lists", sentence, behind, limit)


def _calibration(limits: Watch, tasks: dict[str, Any]) -> Iterator[WatchAlarm]:
    low, high = limits.pcoc
    for task, figures in tasks.items():
        pcoc = figures["pcoc"]
        if pcoc is not None and (pcoc["high"] < low or pcoc["low"] > high):
            yield WatchAlarm(
                "calibration",
                f"PCOC of {task.replace('_', ' ')} on {figures['rows']:,} listed impressions at the context's "
                f"reference is {pcoc['value']:.3f} [{pcoc['low']:.3f}, {pcoc['high']:.3f}]: wholly outside {low} to "
                f"{high} (watch.pcoc).",
                pcoc["value"],
                low if pcoc["high"] < low else high,
            )


def _coverage(limits: Watch, days: list[dict[str, Any]]) -> Iterator[WatchAlarm]:
    listed = [day for day in days if "explained_share" in day]
    for day in listed[-1:]:
        for name, key, least, told in (
            ("users without lists", "active_users_share", limits.min_users_share, "of the active users had a list"),
            ("other items", "explained_share", limits.min_explained_share, "of the impressions were of their lists"),
        ):
            if day[key] < least:
                sentence = f"{day[key]:.1%} {told} on {day['day']}: at least {least:.1%} is expected"
                option = "min_users_share" if key == "active_users_share" else "min_explained_share"
                yield WatchAlarm(name, f"{sentence} (watch.{option}).", day[key], least)


def _drift(limits: Watch, drift: dict[str, Any]) -> Iterator[WatchAlarm]:
    for part, found in drift.items():
        for one in found.get("columns", []):
            if one["excess"] > limits.min_drift:
                yield WatchAlarm(
                    f"drift of {part}",
                    f"{one['column']} has drifted: divergence {one['divergence']:.4f} bits, {one['excess']:.4f} above "
                    f"the floor {one['floor']:.4f} of {found['days']} days; {limits.min_drift} is allowed "
                    "(watch.min_drift).",
                    one["excess"],
                    limits.min_drift,
                )


def _shares(limits: Watch, shares: list[dict[str, Any]]) -> Iterator[WatchAlarm]:
    for one in shares:
        for kind in ("missing", "unseen") if "unseen_newest" in one else ("missing",):
            newest, before = one[f"{kind}_newest"], one[f"{kind}_training"]
            if newest - before > limits.max_share_increase:
                yield WatchAlarm(
                    f"{kind} values",
                    f"{newest:.1%} of {one['column']} are {kind}, {before:.1%} were on the training days: an increase "
                    f"of {limits.max_share_increase:.1%} is allowed (watch.max_share_increase).",
                    newest - before,
                    limits.max_share_increase,
                )


def _slow(limits: Watch, stages: list[dict[str, Any]]) -> Iterator[WatchAlarm]:
    for one in stages:
        last = list(one["seconds"].values())[-1]
        usual = one["usual"]
        if last is None or usual is None or last < LEAST_SECONDS:
            continue
        if last > limits.slow_factor * usual:
            yield WatchAlarm(
                "slow stage",
                f"{one['stage']} took {last:.0f} s, {last / usual:.1f} times the usual {usual:.0f} s: "
                f"{limits.slow_factor:g} times is allowed (watch.slow_factor).",
                last / usual,
                limits.slow_factor,
            )
