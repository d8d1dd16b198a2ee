"""Is one joint model cheaper than a network a task? Training cost to equal quality, weights, and scoring cost."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch.optim.optimizer import register_optimizer_step_post_hook

from models.ranker import Ranker, RankerSpec, predict
from pipeline.dataset import Examples
from pipeline.experiments import Cell, Experiment, fit_with_seed, verdict
from pipeline.fit import PREDICT_ROWS, Fit, fit_ranker, validation_losses
from pipeline.label_sums import base_rates, total
from pipeline.maturity import TASKS
from pipeline.significance import CONFIDENCE, Estimate
from pipeline.study_data import Study
from pipeline.study_training import Fitted, Material, Trained, sizes, train
from pipeline.study_variants import as_click_model

EPOCHS = 3
CHECKS = 20
TOLERANCE = 0.001
ALONE = "shared_bottom"
"""The body of a network of one task: with one loss it is one network with one tower, the other tower is idle."""
BYTES_A_WEIGHT = 4
QUESTION = "Does one joint model cost less than separate networks, one a task, of the same quality?"
RULE = (
    "Quality is the validation log-loss: for each task and seed the best that its own network reaches, up to 0.1 %. "
    "Passes when the joint body reaches both tasks' quality on every seed in fewer CPU seconds than the separate "
    "networks need for theirs together, beyond the 95 % interval over seeds, and scores in fewer CPU seconds than they "
    "do together, likewise, with fewer bytes of weights. Steps are shown too: they do not depend on the machine."
)


@dataclass
class Watch:
    """Measures the validation losses of a ranker in training every so many steps, and the CPU seconds up to then.

    It is a hook of the optimisers: the loop is that of every training. What the checks cost is not counted.
    """

    validation: list[Examples]
    every: int
    checks: list[dict[str, float]] = field(default_factory=list)
    ranker: Ranker | None = None
    steps: int = 0
    started: float = 0.0

    def begin(self, ranker: Ranker) -> None:
        """Start the clock of a ranker that is about to train."""
        self.ranker, self.started = ranker, time.process_time()

    def __call__(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        """Count a step of the optimiser of the dense weights, which is the last of a training step."""
        assert self.ranker is not None, "begin comes first"
        if not any(weight is self.ranker.bias_T for group in optimizer.param_groups for weight in group["params"]):
            return
        self.steps += 1
        if self.steps % self.every == 0:
            begun = time.process_time()
            spent = begun - self.started
            losses = validation_losses(self.ranker, self.validation)
            self.checks.append({"steps": self.steps, "cpu_seconds": spent, **losses})
            self.started += time.process_time() - begun


def fit_watched(spec: RankerSpec, fit: Fit, material: Material, every: int) -> tuple[Ranker, dict[str, Any]]:
    """Fit a ranker as always, and return it with its curve and its checks."""
    watch = Watch(material.validation, every)

    def begin(ranker: Ranker) -> None:
        ranker.start_at(**base_rates(total(day.label_sums() for day in material.training)))
        watch.begin(ranker)

    handle = register_optimizer_step_post_hook(watch)
    try:
        ranker, curve = fit_ranker(spec, fit, material.training, material.validation, begin)
    finally:
        handle.remove()
    return ranker, {"curve": curve, "checks": watch.checks, **sizes(ranker)}


def efficiency(study: Study, experiment: Experiment, epochs: int = EPOCHS, checks: int = CHECKS) -> dict[str, Any]:
    """Train the joint body, and a network for click and one for click-and-conversion, and compare what they cost.

    Each network of one task has the configuration's hidden widths and embeddings of its own. All are checked
    `checks` times an epoch, and train with the same batches for the same epochs. Tasks beyond the two are left out.

    Raises:
        ValueError: fewer than two seeds, or the validation days have no mature row of a task.
    """
    if experiment.seeds < 2:  # noqa: PLR2004  # an interval over seeds needs two
        raise ValueError(f"--seeds {experiment.seeds}: an interval over seeds needs at least 2")
    runs = [_train_seed(study, experiment, seed, epochs, checks) for seed in experiment.seed_numbers()]
    costs = [_costs(run) for run in runs]
    cells = [
        _cell("CPU seconds to equal quality", "less expected", [cost["cpu_seconds"] for cost in costs]),
        _cell("steps to equal quality", "shown", [cost["steps"] for cost in costs]),
        _cell("CPU seconds of scoring", "less expected", [cost["scoring"] for cost in costs]),
        _cell("bytes of weights", "less expected", [cost["bytes"] for cost in costs]),
    ]
    unreached = [str(seed) for seed, cost in enumerate(costs, start=1) if np.isinf(cost["steps"][0])]
    passed = not unreached and all(cell.passed for cell in cells)
    parts = "; ".join(f"{cell.name} {cell.detail}" for cell in cells)
    sentence = f"Joint against separate networks: {parts}." + (
        f" The joint body never reached their quality on seeds {', '.join(unreached)}." if unreached else ""
    )
    texts = {"experiment": "efficiency", "question": QUESTION, "rule": RULE, "sentence": sentence}
    result = verdict(study, experiment, texts, cells)
    return result | {"passed": passed, "runs": [_run_record(run) for run in runs]}


Run = dict[str, Trained]


def _train_seed(study: Study, experiment: Experiment, seed: int, epochs: int, checks: int) -> Run:
    fit = fit_with_seed(study, seed, epochs)
    joint, alone = (_two_tasks(study.spec(body, seed)) for body in (experiment.body, ALONE))
    both = [as_click_model(days) for days in (study.training, study.validation)]
    plain = Material(study.training, study.validation, {"measured": study.measured})
    turned = Material(both[0], both[1], {"measured": study.measured})
    of_one = replace(fit, conversion_weight=0.0)
    return {
        "joint": _watched("joint", joint, fit, plain, experiment, checks),
        "click": _watched("click alone", alone, of_one, plain, experiment, checks),
        "click_and_conversion": _watched("both alone", alone, of_one, turned, experiment, checks),
    }


def _two_tasks(spec: RankerSpec) -> RankerSpec:
    return replace(spec, binary_tasks={}, value_tasks={})


def _watched(name: str, spec: RankerSpec, fit: Fit, material: Material, experiment: Experiment, checks: int) -> Trained:
    steps = sum(-(-len(day.clicks) // fit.batch_size) for day in material.training)
    every = max(1, steps // checks)

    def make() -> Fitted:
        ranker, record = fit_watched(spec, fit, material, every)
        return Fitted(lambda features: predict(ranker, features, PREDICT_ROWS), record)

    settings = [asdict(spec), asdict(fit), every]
    code = [Path(__file__)]  # a Watch makes the record that is kept
    return train(f"{name} seed {spec.seed}", settings, material, experiment.cache, make, code=code)


def _costs(run: Run) -> dict[str, tuple[float, float]]:
    """Return the joint body's cost and that of the separate networks together, by what it is of."""
    targets, alone = {}, {"cpu_seconds": 0.0, "steps": 0.0}
    for task in TASKS:
        checks = _losses(run[task], task, "click")
        targets[task] = min(check["loss"] for check in checks) * (1 + TOLERANCE)
        first = next(check for check in checks if check["loss"] <= targets[task])
        alone = {name: spent + first[name] for name, spent in alone.items()}
    by_task = [_losses(run["joint"], task, task) for task in TASKS]
    reached = (
        now[0]
        for now in zip(*by_task, strict=True)
        if all(check["loss"] <= targets[task] for task, check in zip(TASKS, now, strict=True))
    )
    joint = next(reached, {"cpu_seconds": np.inf, "steps": np.inf})
    records = {name: trained.record for name, trained in run.items()}
    together = {key: sum(records[task][key] for task in TASKS) for key in ("scoring_cpu_seconds", "parameters")}
    return {
        "cpu_seconds": (joint["cpu_seconds"], alone["cpu_seconds"]),
        "steps": (joint["steps"], alone["steps"]),
        "scoring": (records["joint"]["scoring_cpu_seconds"], together["scoring_cpu_seconds"]),
        "bytes": tuple(BYTES_A_WEIGHT * one for one in (records["joint"]["parameters"], together["parameters"])),
    }


def _losses(trained: Trained, task: str, head: str) -> list[dict[str, float]]:
    """Return the checks of a training with a task's loss, which the model has under the name of a head."""
    checks = trained.record["checks"]
    if not checks or head not in checks[0]:
        raise ValueError(
            f"the validation days have no mature row of {task}, so that no quality can be reached: set "
            "labels.immature = 'weight' or 'keep', or validate on earlier days"
        )
    return [{**check, "loss": check[head]} for check in checks]


def _cell(name: str, role: str, pairs: Sequence[tuple[float, float]]) -> Cell:
    """Judge the logarithm of the joint body's cost over the others', with Student's interval over seeds."""
    estimate = log_ratio(pairs)
    factors = [float(np.exp(bound)) for bound in (estimate.value, estimate.low, estimate.high)]
    detail = f"times {factors[0]:.2f} [{factors[1]:.2f}, {factors[2]:.2f}]"
    if np.isinf(estimate.value):
        detail = "never reached on some seed"
    return Cell(name, role, estimate, role == "shown" or estimate.high < 0, detail)


def log_ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Estimate the mean logarithm of the first over the second, with Student's interval; infinite where one is."""
    logs = np.log([one / other for one, other in pairs])
    if np.isinf(logs).any():
        return Estimate(np.inf, np.inf, np.inf, np.nan)
    value, error = float(logs.mean()), float(logs.std(ddof=1) / np.sqrt(len(logs)))
    if not error:
        return Estimate(value, value, value, float(value == 0))
    reach = float(student.ppf((1 + CONFIDENCE) / 2, len(logs) - 1)) * error
    p = 2 * float(student.sf(abs(value) / error, len(logs) - 1))
    return Estimate(value, value - reach, value + reach, p)


def _run_record(run: Run) -> Mapping[str, Any]:
    keys = ("checks", "parameters", "training_cpu_seconds", "peak_mib", "scored_rows", "scoring_cpu_seconds")
    return {name: {key: trained.record[key] for key in keys} for name, trained in run.items()}
