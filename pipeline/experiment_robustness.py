"""Does a joint model degrade less? Slopes under label noise in either task or both, and under missing features."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluate import TASKS
from pipeline.experiments import (
    Cell,
    Experiment,
    capacity,
    capacity_fault,
    fit_with_seed,
    measure_task,
    specs_of,
    verdict,
)
from pipeline.significance import SIGNIFICANCE, Estimate, Replicates, contrast, holm
from pipeline.study_data import Study
from pipeline.study_training import Material, Trained, train_ranker
from pipeline.study_variants import Noise, noisy, with_missing

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.4)
NOISES: tuple[Noise, ...] = ("conversion", "click", "both")
MISSING = "missing features"
SIDES = ("joint", "single")
MAIN = "click_and_conversion"
QUESTION = "Does the joint body lose less than single-task networks when labels are wrong or features are missing?"
RULE = (
    "A slope is the change of AUC per unit of noise, by least squares over the levels. Passes when under no kind of "
    "noise the joint body's slope is below that of single-task networks with as many weights outside the embeddings, "
    "beyond the 95 % interval over users and seeds, on any task, and on click-and-conversion it is above under at "
    "least one kind with Holm's adjusted p, over all cells, below 0.05. Labels are noisy in training only; the "
    "measured ones are true."
)


def robustness(study: Study, experiment: Experiment, levels: Sequence[float] = LEVELS) -> dict[str, Any]:
    """Train both sides under every kind and level of label noise, and hide features from the models without noise.

    Raises:
        ValueError: fewer than two levels, none of them 0, one outside [0, 1], or the body is none or the control.
    """
    wanted = sorted(set(levels))
    if len(wanted) < 2 or wanted[0] != 0 or wanted[-1] > 1:  # noqa: PLR2004  # a slope needs two points
        raise ValueError(f"--levels {list(levels)}: expected 0 and at least one share up to 1, such as 0,0.1,0.4")
    sides = capacity(study, experiment)
    trained = _train(study, experiment, wanted)
    cells, by_level = [], {}
    for task in TASKS:
        for kind in (*NOISES, MISSING):
            measured = [_measure(study, task, trained[kind][level], experiment, kind, level) for level in wanted]
            cells.append(_cell(task, kind, wanted, measured))
            by_level[f"{task}, {kind}"] = {
                side: [float(one[side].values_SM[:, 0].mean()) for one in measured] for side in SIDES
            }
    worse, better = _worse(cells), loses_less(cells)
    sentence = _sentence(worse, better, len(cells))
    texts = {"experiment": "robustness", "question": QUESTION, "rule": RULE, "sentence": sentence}
    result = verdict(study, experiment, texts, cells)
    result["failures"] += capacity_fault(sides)
    helped = any(name.startswith(MAIN) for name in better)
    if not helped:
        result["failures"].append(f"{MAIN}: under no kind of noise does the joint body lose less, Holm's p below 0.05")
    return result | {
        "passed": not result["failures"],
        "capacity": sides,
        "levels": wanted,
        "auc_by_level": by_level,
    }


Runs = dict[str, list[Trained]]


def _train(study: Study, experiment: Experiment, levels: Sequence[float]) -> dict[str, dict[float, Runs]]:
    """Train every side by kind and level; all kinds share the models without noise, which miss features too."""
    clean = _train_level(study, experiment, "both", 0.0, levels)
    trained: dict[str, dict[float, Runs]] = {MISSING: dict.fromkeys(levels, clean)}
    for kind in NOISES:
        trained[kind] = {
            level: _train_level(study, experiment, kind, level, ()) if level else clean for level in levels
        }
    return trained


def _train_level(
    study: Study, experiment: Experiment, kind: Noise, level: float, missing: Sequence[float]
) -> dict[str, list[Trained]]:
    trained: Runs = {side: [] for side in SIDES}
    for seed in experiment.seed_numbers():
        specs = specs_of(study, experiment, seed)
        measured = {"measured": study.measured} | {
            _name(share): with_missing(study.measured, share, specs[0], seed) for share in missing
        }
        label = f"{level:.3g} {kind} noise" if level else "without noise"
        material = Material(noisy(study.training, kind, level, seed), study.validation, measured, label)
        for side, spec in zip(SIDES, specs, strict=True):
            trained[side].append(train_ranker(spec, fit_with_seed(study, seed), material, experiment.cache))
    return trained


def _name(share: float) -> str:
    return f"missing-{share:g}"


def _measure(
    study: Study, task: str, runs: Runs, experiment: Experiment, kind: str, level: float
) -> dict[str, Replicates]:
    return measure_task(study, task, runs, experiment, _name(level) if kind == MISSING else "measured")


def slope_weights(levels: Sequence[float]) -> list[float]:
    """Return what each level counts in the least-squares slope: its distance from the mean over all squares."""
    distances = np.asarray(levels) - np.mean(levels)
    weights: list[float] = (distances / (distances @ distances)).tolist()
    return weights


def _cell(task: str, kind: str, levels: Sequence[float], measured: Sequence[Mapping[str, Replicates]]) -> Cell:
    weights = slope_weights(levels)
    terms = {side: [(weight, one[side]) for weight, one in zip(weights, measured, strict=True)] for side in SIDES}
    slopes: dict[str, Estimate] = {side: contrast(parts)["auc"] for side, parts in terms.items()}
    difference = contrast([*terms["joint"], *((-weight, one) for weight, one in terms["single"])])["auc"]
    shown = ", ".join(
        f"{side} {slope.value:+.4f} [{slope.low:+.4f}, {slope.high:+.4f}]" for side, slope in slopes.items()
    )
    name = f"{task} under {kind}" + ("" if kind == MISSING else " noise")
    return Cell(name, "slope not below", difference, not difference.high < 0, f"slopes: {shown}")


def _worse(cells: Sequence[Cell]) -> list[str]:
    return [cell.name for cell in cells if not cell.passed]


def loses_less(cells: Sequence[Cell]) -> list[str]:
    """Return where the joint body loses less beyond the luck of looking at so many cells."""
    adjusted = holm([cell.estimate.p for cell in cells])
    return [cell.name for cell, p in zip(cells, adjusted, strict=True) if cell.estimate.value > 0 and p < SIGNIFICANCE]


def _sentence(worse: Sequence[str], better: Sequence[str], cells: int) -> str:
    return (
        f"The joint body loses less on {'; '.join(better) or 'nothing'}; more on {'; '.join(worse) or 'nothing'}; "
        f"{cells - len(better) - len(worse)} of {cells} slopes show no difference."
    )
