"""Verdicts on a trained model: each one sentence with its figures, and whether it alarms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.significance import SIGNIFICANCE

Values = Mapping[str, Any]

# For predictions that are near normal and calibrated, AUC - 0.5 = s / (2 sqrt(pi)), where s is their standard deviation
# over rate x (1 - rate), which is that of their log-odds. At 0.01 the best order they can give has an AUC of 0.503.
CONSTANT_BELOW = 0.01
# The standard error of an AUC of 0.5 is sqrt(1 / 12 P) with P positives among many negatives: at 100 its interval
# reaches 0.057 to either side, so an interval that holds 0.5 tells a dead task from one of 0.56.
ENOUGH_OF_A_CLASS = 100
# Of two experts the other one then has a twentieth: a gate that has learned to use one.
TAKES_ALL_ABOVE = 0.95
# Of two experts weights of 0.994 and 0.006 on every row: the gate no longer mixes, whichever expert it picks.
ENTROPY_NEAR_ZERO = 0.05
# Copies that training has moved a little apart; networks of one shape from different seeds are below it.
ALIKE_ABOVE = 0.99
# The expert is narrower than half of what it was configured to be. Healthy ones of the default body on KuaiRand reach
# 0.22; its towers reach 0.44, which costs nothing: a tower that has died is one of constant predictions.
DEAD_ABOVE = 0.5
TOWER = "tower"

BETTER, NOTHING_SHOWN, WORSE = "better", "no difference shown", "worse"
NAMES = {"auc": "AUC", "log_loss": "log-loss"}
BETTER_SIGN = {"auc": 1, "log_loss": -1}
NUMBERS = {2: "two", 4: "four", 6: "six", 8: "eight", 10: "ten", 12: "twelve"}


@dataclass(frozen=True)
class Verdict:
    """What is said of one way in which a joint model can fail."""

    name: str
    alarm: bool
    sentence: str
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def seesaw(differences: Mapping[str, Values], not_measured: str | None) -> Verdict:
    """Judge each task of the joint model against its single-task control.

    A task is worse where its AUC is lower or its log-loss higher with an adjusted p-value below 0.05, else better where
    one of them is better likewise, else no difference is shown, which does not say that there is none. The alarm is a
    task that is worse: a seesaw where another one gains. It holds for the one seed of either side.

    Args:
        differences: by task and metric the interval of joint minus control, with `p_holm`, its p-value adjusted for all
            AUCs and log-losses here; empty where there is no control.
        not_measured: why there is none.
    """
    if not differences:
        return Verdict("seesaw", alarm=False, sentence=f"Seesaw not measured: {not_measured}.")
    found = {task: _against_control(metrics) for task, metrics in differences.items()}
    figures = "; ".join(_difference_text(task, differences[task], found[task]) for task in found)
    worse, better = ([_words(task) for task, value in found.items() if value == kind] for kind in (WORSE, BETTER))
    if not worse:
        begin = "No seesaw shown"
    elif better:
        begin = f"Seesaw: {_listed(worse)} {_verb(worse, 'pays', 'pay')} for {_listed(better)}"
    else:
        begin = f"Sharing costs {_listed(worse)}, and no gain is shown"
    looks = len(NAMES) * len(differences)
    basis = f"for this seed, over users, adjusted for {NUMBERS.get(looks, str(looks))} looks"
    sentence = f"{begin} ({basis}), joint - single-task: {figures}."
    return Verdict("seesaw", bool(worse), sentence, {"tasks": found})


def _against_control(metrics: Values) -> str:
    shown = [sign * metrics[key]["value"] for key, sign in BETTER_SIGN.items() if metrics[key]["p_holm"] < SIGNIFICANCE]
    if any(gain < 0 for gain in shown):
        return WORSE
    return BETTER if shown else NOTHING_SHOWN


def _difference_text(task: str, metrics: Values, found: str) -> str:
    parts = [
        f"{name} {metrics[key]['value']:+.4f} [{metrics[key]['low']:+.4f}, {metrics[key]['high']:+.4f}]"
        for key, name in NAMES.items()
    ]
    return f"{_words(task)} {', '.join(parts)} ({found})"


def constant_predictions(spreads: Mapping[str, float]) -> Verdict:
    """Judge whether a probability says the same of every impression.

    Args:
        spreads: by task the standard deviation of the predictions, with the context at its reference as in ranking,
            over rate x (1 - rate) of the labels.
    """
    constant = [task for task, spread in spreads.items() if spread < CONSTANT_BELOW]
    listed = ", ".join(f"{_words(task)} {spread:.3g}" for task, spread in spreads.items())
    begin = f"Constant predictions of {_listed(map(_words, constant))}" if constant else "No constant predictions"
    sentence = (
        f"{begin}: standard deviation over rate x (1 - rate) is {listed}; below {CONSTANT_BELOW} nothing is ordered."
    )
    return Verdict("constant_predictions", bool(constant), sentence, {"spread": dict(spreads)})


def dead_task(tasks: Mapping[str, Values], counts: Mapping[str, tuple[int, int]]) -> Verdict:
    """Judge whether a task tells positives from negatives at all, and better than its rate does.

    It is dead where the interval of its AUC reaches down to 0.5, or where its log-loss is at least that of predicting
    the test days' own rate (normalised entropy of 1 or more). With fewer than 100 of a class it is not judged.

    Args:
        tasks: metrics with intervals.
        counts: positives and negatives of each task's space.
    """
    few = [task for task in tasks if min(counts[task]) < ENOUGH_OF_A_CLASS]
    judged = {task: metrics for task, metrics in tasks.items() if task not in few}
    faults = [fault for task, metrics in judged.items() for fault in _faults(_words(task), metrics)]
    alive = [
        f"{_words(task)} AUC {metrics['auc']['value']:.3f}, log-loss {metrics['normalised_entropy']['value']:.3f} of "
        "its rate's"
        for task, metrics in judged.items()
    ]
    texts = ["Dead task: " + "; ".join(faults)] if faults else ["No dead task: " + "; ".join(alive)] if alive else []
    if few:
        listed = ", ".join(f"{_words(task)} ({counts[task][0]} positives, {counts[task][1]} negatives)" for task in few)
        texts.append(f"Too few labels to judge {listed}, {ENOUGH_OF_A_CLASS} of each are enough")
    figures = {
        task: {"auc": metrics["auc"], "normalised_entropy": metrics["normalised_entropy"], "judged": task in judged}
        for task, metrics in tasks.items()
    }
    return Verdict("dead_task", bool(faults), ". ".join(texts) + ".", figures)


def _faults(name: str, metrics: Values) -> list[str]:
    auc, entropy = metrics["auc"], metrics["normalised_entropy"]["value"]
    faults = []
    if auc["low"] <= 0.5:  # noqa: PLR2004  # chance
        faults.append(f"AUC of {name} is {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}], which reaches 0.5")
    if entropy >= 1:
        faults.append(f"log-loss of {name} is {entropy:.3f} times that of predicting its rate")
    return faults


def one_expert(gates: Sequence[Values]) -> Verdict:
    """Judge whether a gate that sees several experts uses one, over all rows or on each.

    Args:
        gates: level by level names, utilisation, and normalised entropy, which is None for a gate that sees one.
    """
    rows = [
        (f"{gate} of level {level['level']}", level["experts"][use.index(max(use))], max(use), entropy)
        for level in gates
        for gate, use, entropy in zip(level["gates"], level["utilisation"], level["normalised_entropy"], strict=True)
        if entropy is not None
    ]
    if not rows:
        return Verdict("one_expert", alarm=False, sentence="No gate chooses between experts in this body.")
    taken = [row for row in rows if row[2] > TAKES_ALL_ABOVE or row[3] < ENTROPY_NEAR_ZERO]
    shown = taken or [max(rows, key=lambda row: row[2])]
    begin = "One expert takes all" if taken else "No expert takes all, the most uneven gate"
    listed = "; ".join(
        f"{gate} gives {expert} {weight:.1%}, entropy {entropy:.2f} of the most even"
        for gate, expert, weight, entropy in shown
    )
    figures = [
        {"gate": gate, "expert": expert, "utilisation": weight, "normalised_entropy": entropy}
        for gate, expert, weight, entropy in shown
    ]
    return Verdict("one_expert", bool(taken), f"{begin}: {listed}.", {"gates": figures})


def experts_alike(cka: Sequence[Values]) -> Verdict:
    """Judge whether the experts of a level all give the same, up to rotation and scale.

    Args:
        cka: level by level names and similarity; pairs with an expert that is constant have none.
    """
    means = {}
    for level in cka:
        pairs = [value for n, row in enumerate(level["similarity"]) for value in row[:n] if value is not None]
        if pairs:
            means[level["level"]] = math.fsum(pairs) / len(pairs)
    if not means:
        return Verdict("experts_alike", alarm=False, sentence="No level has two experts to compare.")
    alike = [level for level, mean in means.items() if mean > ALIKE_ABOVE]
    listed = ", ".join(f"{mean:.3f} in level {level}" for level, mean in means.items())
    begin = f"Experts are all alike in level {_listed(map(str, alike))}" if alike else "Experts differ"
    sentence = f"{begin}: mean CKA of their outputs is {listed}; above {ALIKE_ABOVE} one would do."
    return Verdict(
        "experts_alike", bool(alike), sentence, {"mean_cka": {str(key): value for key, value in means.items()}}
    )


def dead_units(rows: Sequence[Values]) -> Verdict:
    """Judge whether more than half of the units of some layer of an expert are active for no row.

    Args:
        rows: layer, expert and share of dead units; those of task towers are not judged.
    """
    layers = [row for row in rows if not row["layer"].startswith(TOWER)]
    if not layers:
        return Verdict("dead_units", alarm=False, sentence="No layer has units that can die in this body.")
    worst = max(layers, key=lambda row: row["share"])
    dead = [row for row in layers if row["share"] > DEAD_ABOVE]
    begin = f"{len(dead)} of {len(layers)} expert layers are mostly dead" if dead else "Experts' units are alive"
    where = f"most in {worst['layer']} of {worst['expert']}, {worst['share']:.0%} of whose units are active for no row"
    return Verdict("dead_units", bool(dead), f"{begin}: {where}.", {"worst": dict(worst), "layers": len(dead)})


def _words(task: str) -> str:
    return task.replace("_", " ")


def _listed(names: Any) -> str:
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _verb(names: Sequence[str], one: str, several: str) -> str:
    return one if len(names) == 1 else several
