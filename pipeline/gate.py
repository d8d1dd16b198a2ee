"""The gate: whether a run's model may become champion, check by check on the run's test days."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.evaluate import TASKS
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder
from pipeline.gate_checks import LEAST_USERS, Check, Look, gauc_look, judge, log_loss_look, pcoc_look
from pipeline.gate_lists import Retrieved, retrieve_with
from pipeline.gate_rows import Tested, predict_test_days
from pipeline.metrics import Floats
from pipeline.scoring import Bundle, check_features
from pipeline.segments import MISSING, OTHERS, impression_segments
from pipeline.split import Days
from pipeline.workspace import Workspace

POPULARITY = "the popularity baseline"
Outcome = Literal["passed", "failed", "not compared"]
Found = list[Look | Check]
"""Looks to be judged together, and checks that have their answer already, in the order of the report."""


@dataclass(frozen=True)
class Opponent:
    """The champion.

    Attributes:
        version: its version.
        bundle: the model; None where it cannot be loaded.
        fitted_through: the last day that it was fitted on, None where its record does not tell.
        problem: why it cannot be loaded.
    """

    version: str
    bundle: Bundle | None
    fitted_through: dt.date | None
    problem: str = ""


@dataclass(frozen=True)
class Judgement:
    """What the gate found.

    Attributes:
        outcome: 'not compared' where the test days tell nothing about the champion, or no task could be measured.
        sentence: why, in one sentence without a full stop.
        reference: what the challenger was held against.
        log_loss: the challenger's of click-and-conversion; None without a positive or a negative.
        checks: all of them, in the order of the report.
    """

    outcome: Outcome
    sentence: str
    reference: str
    log_loss: float | None
    checks: list[Check]


def judge_run(
    config: Config,
    workspace: Workspace,
    days: Days,
    challenger: Bundle,
    opponent: Opponent | None,
    verdicts: Sequence[Mapping[str, Any]],
) -> Judgement:
    """Judge a run's model on its raw test impressions, each model with its own encoder and calibration.

    It is held against the champion; where there is none, or none that these days can tell about, against the
    popularity of items. Labels count as known, those that may still change as calibrate corrects them.

    Args:
        config: of the run; its table `gate` says what is allowed.
        workspace: its tables.
        days: of the run.
        challenger: the run's model.
        opponent: the champion, if there is one.
        verdicts: on the run, of its evaluation.json.
    """
    folder = run_folder(config, workspace, days)
    why_not = None if opponent is None else why_not_compared(config, days, opponent)
    champion = None if opponent is None or why_not else opponent.bundle
    reference = POPULARITY if champion is None else f"version {champion.version}"
    tested = predict_test_days(config, workspace, days, challenger, champion)
    parts = _task_looks(config, tested)
    unmeasured = not any(isinstance(part, Look) for part in parts)
    if champion is not None:
        parts += _segment_looks(config, tested, impression_segments(config, workspace, folder, tested.frames))
        parts += _retrieval(
            config, tested, retrieve_with(config, workspace, folder, days.test[-1], [challenger, champion])
        )
    checks = answered(config, parts) + diagnostic_checks(config, verdicts)
    failed = [check for check in checks if check.verdict == "failed"]
    if failed:
        outcome: Outcome = "failed"
        sentence = "; ".join(_sentence(check, reference) for check in failed)
    elif why_not or unmeasured:
        outcome = "not compared"
        sentence = why_not or f"too few test labels to compare with {reference}: collect more, or promote by hand"
    else:
        outcome, sentence = "passed", _passed(checks, reference, first=champion is None)
    return Judgement(outcome, sentence, reference, _log_loss(checks), checks)


def why_not_compared(config: Config, days: Days, opponent: Opponent) -> str | None:
    """Say why the test days tell nothing fair about the champion; None where they do."""
    version, through = opponent.version, opponent.fitted_through
    if opponent.bundle is None:
        return f"champion {version} cannot be compared ({opponent.problem})"
    try:
        check_features(opponent.bundle, plan_of(config))
    except ValueError as error:
        return f"champion {version} cannot be compared ({error})"
    if through is not None and days.test[0] <= through:
        return (
            f"champion {version} cannot be compared: it was fitted on days through {through}, which holds the test day "
            f"{days.test[0]}; `counterpoise promote` decides by hand"
        )
    return None


def _task_looks(config: Config, tested: Tested) -> Found:
    settings, users, parts = config.gate, len(tested.user_ids), Found()
    for task in TASKS:
        trials, name = tested.of(task), task.replace("_", " ")
        if reason := trials.too_few(settings.min_positives):
            parts.append(Check(name=name, verdict="not measured", reason=reason))
            continue
        parts.append(log_loss_look(f"{name} log-loss", trials, users, settings.tolerance.log_loss))
        few = Check(
            name=f"{name} GAUC", verdict="not measured", reason=f"fewer than {LEAST_USERS} users with both classes"
        )
        parts.append(gauc_look(f"{name} GAUC", trials, users, settings.tolerance.gauc) or few)
        parts.append(pcoc_look(f"{name} PCOC", trials, users, settings.pcoc))
    return parts


def _segment_looks(config: Config, tested: Tested, values: pl.DataFrame) -> Found:
    """Look at the log-loss of every task for new users, for new items and on the top surfaces that have enough rows."""
    parts, users = Found(), len(tested.user_ids)
    for kind, value in _guarded(values, config.gate.surfaces):
        among = (values[kind] == value).to_numpy()
        if among.all() or among.sum() < config.gate.min_rows:
            continue  # of all rows it would be the same look again
        for task in TASKS:
            trials = tested.of(task, among)
            if trials.too_few(config.gate.min_positives) is None:
                name = f"{kind.removeprefix('surface: ')} {value}: {task.replace('_', ' ')} log-loss"
                parts.append(log_loss_look(name, trials, users, config.gate.tolerance.log_loss))
    return parts


def _guarded(values: pl.DataFrame, surfaces: int) -> list[tuple[str, str]]:
    found = [("new users", "new"), ("new items", "new")]
    for kind in (name for name in values.columns if name.startswith("surface: ")):
        counts = values[kind].rename("value").value_counts().sort(["count", "value"], descending=[True, False])
        top = [value for value in counts["value"] if value not in {OTHERS, MISSING}][:surfaces]
        found += [(kind, value) for value in top]
    return found


def _retrieval(config: Config, tested: Tested, found: Retrieved) -> Found:
    parts = Found()
    codes = pl.DataFrame({"user_id": tested.user_ids}).with_row_index("code")
    for label, ids in found.users.items():
        name = f"recall of {label}s among the candidates"
        known = pl.DataFrame({"user_id": ids}).join(codes, on="user_id", how="left", maintain_order="left")["code"]
        kept = known.is_not_null().to_numpy()
        if kept.sum() < LEAST_USERS:
            reason = f"{kept.sum()} users with a {label}: {LEAST_USERS} are needed"
            parts.append(Check(name=name, verdict="not measured", reason=reason))
            continue
        place = partial(_placed, known.drop_nulls().to_numpy(), len(tested.user_ids))
        challenger_U, reference_U = (place(one[kept]) for one in found.recall[label])
        parts.append(
            Look(
                name=name,
                challenger_U=challenger_U,
                reference_U=reference_U,
                denominators_U=place(np.ones(int(kept.sum()))),
                least=-config.gate.tolerance.recall,
            )
        )
    return [*parts, coverage_check(found.coverage[0], found.coverage[1], config.gate.tolerance.coverage)]


def _placed(codes_E: NDArray[np.int64], users: int, values_E: Floats) -> Floats:
    values_U = np.zeros(users)
    values_U[codes_E] = values_E
    return values_U


def coverage_check(challenger: float, champion: float, tolerance: float) -> Check:
    """Ask whether the candidates hold enough of the catalogue; it depends on no sample, so it has no interval."""
    least = (1 - tolerance) * champion
    return Check(
        name="coverage of the candidates",
        verdict="failed" if challenger < least else "passed",
        challenger=challenger,
        reference=champion,
        allowed=f"at least {least:.4f}",
        reason=f"{challenger:.4f} of the available items, at least {least:.4f} is allowed",
    )


def diagnostic_checks(config: Config, verdicts: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Return the verdicts on the run; an alarm fails or warns as gate.blocking_alarms says."""
    checks = []
    for verdict in verdicts:
        blocks = verdict["name"] in config.gate.blocking_alarms
        answer: Literal["failed", "warned", "passed"] = "passed"
        if verdict["alarm"]:
            answer = "failed" if blocks else "warned"
        name = f"no alarm: {verdict['name'].replace('_', ' ')}"
        checks.append(Check(name=name, verdict=answer, reason=verdict["sentence"]))
    return checks


def answered(config: Config, parts: Found) -> list[Check]:
    """Judge all looks at once and return every check in its place."""
    looks = [part for part in parts if isinstance(part, Look)]
    judged = iter(judge(looks, replicates=config.evaluation.replicates, seed=config.seed))
    return [next(judged) if isinstance(part, Look) else part for part in parts]


def _log_loss(checks: list[Check]) -> float | None:
    return next((check.challenger for check in checks if check.name == "click and conversion log-loss"), None)


def _sentence(check: Check, reference: str) -> str:
    """Say in one line why a check failed."""
    if check.difference is not None:
        figures = f"{check.name} {check.challenger:.6f} is worse than {check.reference:.6f} of {reference}"
        return f"{figures} ({check.reason})"
    return f"{check.name}: {check.reason.removesuffix('.')}"


def _passed(checks: list[Check], reference: str, *, first: bool) -> str:
    counts = [
        f"{sum(check.verdict == verdict for check in checks)} {verdict}" for verdict in ("passed", "not measured")
    ]
    told = f"checks: {', '.join(counts)}"
    if first:
        return f"the first version, not worse than {reference}; {told}"
    losses = next((check for check in checks if check.name == "click and conversion log-loss"), None)
    if losses is None or losses.challenger is None:
        return f"not worse than {reference}; {told}"
    return f"test log-loss {losses.challenger:.6f} is not worse than {losses.reference:.6f} of {reference}; {told}"
