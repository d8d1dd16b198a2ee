"""Does the knowledge that tasks share improve generalisation? Training sizes, equal capacity, a shuffled control."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.ranker import RankerSpec
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
from pipeline.significance import Replicates, contrast
from pipeline.study_data import Study
from pipeline.study_training import Material, Trained, train_ranker
from pipeline.study_variants import sampled, shuffled_clicks

SIZES = (0.01, 0.03, 0.1, 0.3, 1.0)
SMALL = 0.1
MAX_EPOCHS = 20
MAIN = "click_and_conversion"
SIDES = ("joint", "single")
QUESTION = "Does sharing between click and conversion improve what is learned of conversions from few rows?"
RULE = (
    "Passes when, at training sizes up to 10 %, the joint body's AUC of click-and-conversion is above that of "
    "single-task networks with as many weights outside the embeddings, beyond the 95 % interval over users and seeds, "
    "and the same difference is not above 0 beyond its interval where the clicks of unconverted impressions are "
    "shuffled within each day: what is gained must come from the clicks' knowledge. Larger sizes and the other tasks "
    "are shown and listed where the joint body is worse beyond its interval."
)


def sharing(
    study: Study, experiment: Experiment, sizes: Sequence[float] = SIZES, max_epochs: int = MAX_EPOCHS
) -> dict[str, Any]:
    """Train joint and single-task networks on samples of the training rows, with true and with shuffled clicks.

    Every seed has a sample of its own, which all models of that seed see. A sample is trained on for more epochs, at
    most `max_epochs`, so that small ones have more than a few steps; the validation loss keeps the best epoch. That
    loss adds the tasks, so single-task networks are selected together, which favours neither task. Models are
    compared under the same labels: a control of the joint body alone would lose the clicks' own task too.

    Raises:
        ValueError: a size is outside (0, 1], or the body is none or the control.
    """
    if wrong := [size for size in sizes if not 0 < size <= 1]:
        raise ValueError(f"--sizes {wrong}: expected shares of the training rows, above 0 and at most 1")
    cells, levels = [], {}
    sides = capacity(study, experiment)
    for size in sorted(set(sizes)):
        trained = _train(study, experiment, size, max_epochs)
        measured = {task: measure_task(study, task, trained, experiment) for task in TASKS}
        cells += _cells(measured, size)
        levels[f"{size:g}"] = {
            task: {name: float(one.values_SM[:, 0].mean()) for name, one in models.items()}
            for task, models in measured.items()
        }
    passed, sentence = conclusion(cells)
    texts = {"experiment": "sharing", "question": QUESTION, "rule": RULE, "sentence": sentence}
    result = verdict(study, experiment, texts, cells)
    result["failures"] += capacity_fault(sides)
    if min(sizes) > SMALL:
        result["failures"].append(f"sizes: none is at most {SMALL:g}, where the rule expects a gain")
    return result | {"passed": passed and not capacity_fault(sides), "capacity": sides, "auc_by_size": levels}


def _train(study: Study, experiment: Experiment, size: float, max_epochs: int) -> dict[str, list[Trained]]:
    trained: dict[str, list[Trained]] = {name: [] for name in (*SIDES, *(f"{side}, shuffled" for side in SIDES))}
    epochs = min(max_epochs, max(1, round(study.config.training.epochs / size)))
    for seed in experiment.seed_numbers():
        rows = sampled(study.training, size, seed)
        for suffix, training in (("", rows), (", shuffled", shuffled_clicks(rows, seed))):
            selected = study.validation if not suffix else shuffled_clicks(study.validation, seed)
            material = Material(
                training, selected, {"measured": study.measured}, f"{percent(size)} of the rows{suffix}"
            )
            for side, spec in zip(SIDES, specs_of(study, experiment, seed), strict=True):
                trained[side + suffix].append(_one(study, spec, material, epochs, experiment.cache))
    return trained


def _one(study: Study, spec: RankerSpec, material: Material, epochs: int, cache: Path | None) -> Trained:
    return train_ranker(spec, fit_with_seed(study, spec.seed, epochs), material, cache)


def _cells(measured: Mapping[str, Mapping[str, Replicates]], size: float) -> list[Cell]:
    cells = []
    for task, models in measured.items():
        gain = contrast([(1, models["joint"]), (-1, models["single"])])["auc"]
        small = task == MAIN and size <= SMALL
        role = "gain expected" if small else "not worse"
        passed = gain.low > 0 if small else not gain.high < 0
        cells.append(Cell(f"{task}, {percent(size)}", role, gain, bool(passed)))
    models = measured[MAIN]
    control = contrast([(1, models["joint, shuffled"]), (-1, models["single, shuffled"])])["auc"]
    cells.append(Cell(f"{MAIN}, {percent(size)}, shuffled", "no gain expected", control, not control.low > 0))
    return cells


def percent(share: float) -> str:
    """Write a share in per cent, without digits that say nothing."""
    return f"{100 * share:.4g} %"


def conclusion(cells: Sequence[Cell]) -> tuple[bool, str]:
    """Return whether the rule is met, and the sentence that says so."""
    gains = [cell for cell in cells if cell.role == "gain expected"]
    controls = [cell for cell in cells if cell.role == "no gain expected"]
    gained, vanished = sum(cell.passed for cell in gains), sum(cell.passed for cell in controls)
    worse = [cell.name for cell in cells if cell.role == "not worse" and not cell.passed]
    passed = bool(gains) and gained == len(gains) and vanished == len(controls)
    sentence = (
        f"Sharing improves click-and-conversion beyond its interval at {gained} of {len(gains)} small sizes; with "
        f"shuffled clicks no gain is left at {vanished} of {len(controls)} sizes. "
        + (f"The joint body is worse on {'; '.join(worse)}." if worse else "The joint body is nowhere worse.")
    )
    return passed, sentence
