"""Multi-task text classification on any table: one encoder for all labels against one classifier a label."""

import datetime as dt
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.encoding import Vocabulary
from features.text import extend_words, known_words
from models.text import TextClassifier, TextSpec
from models.text_fit import LabelledTexts, TextBudget, fit_text, text_logits
from pipeline.significance import Replicates, contrast, holm
from pipeline.text_metrics import TEXT_METRICS, text_replicates
from pipeline.text_model import TextModel, save_text_model, text_ids
from pipeline.text_table import PARTS, TextTable, read_text_table

MIN_COUNT = 2
MAX_WORDS = 20_000
HASH_BUCKETS = 512
MAX_TOKENS = 64
RESULT_FILE = "result.json"
JOINT, SEPARATE = "joint", "separate"


@dataclass(frozen=True, kw_only=True)
class TextStudy:
    """What to train on, and how often."""

    table: Path
    text: str
    labels: Sequence[str]
    time: str | None
    seeds: int
    epochs: int
    replicates: int


@dataclass(frozen=True)
class _Data:
    table: TextTable
    vocabulary: Vocabulary
    parts: list[LabelledTexts]


@dataclass(frozen=True)
class _Fits:
    """Fits of one way of training, seed by seed."""

    models: list[list[TextClassifier]]
    predicted: dict[str, list[NDArray[np.int64]]]
    seconds: float

    def parameters(self) -> int:
        """Return the number of weights of one seed's models together."""
        return sum(weight.numel() for model in self.models[0] for weight in model.parameters())


def classify(study: TextStudy, output: Path) -> dict[str, Any]:
    """Train the joint and the separate classifiers with every seed, measure them on the test rows, and write all.

    The folder gets result.json, which is also returned, and model/ with the joint model of seed 1.

    Raises ValueError for a table that `read_text_table` refuses, and for an output that exists.
    """
    if output.exists():
        raise ValueError(f"--output {output} exists: give a new folder, or remove it")
    data = _prepare(read_text_table(study.table, study.text, study.labels, study.time))
    # The first optimizer imports for about a second, which would count for the joint model alone.
    torch.optim.AdamW([torch.zeros(1)])
    fits = {
        JOINT: _fit(data, [list(study.labels)], study),
        SEPARATE: _fit(data, [[label] for label in study.labels], study),
    }
    output.mkdir(parents=True)
    first = TextModel(fits[JOINT].models[0][0], data.vocabulary, MAX_TOKENS, data.table.classes)
    save_text_model(first, output / "model")
    result = _result(study, data, fits)
    (output / RESULT_FILE).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _prepare(table: TextTable) -> _Data:
    training = table.texts.filter(table.part == 0)
    # The day is a part of the vocabulary's rows, not of the ids: any will do for a vocabulary of its own.
    words = extend_words(None, training, min_count=MIN_COUNT, max_words=MAX_WORDS, added_on=dt.date.min)
    vocabulary = known_words(words, max_words=words.height, hash_buckets=HASH_BUCKETS)
    ids_NL = text_ids(table.texts, vocabulary, MAX_TOKENS)
    # A class that the training rows lack cannot be a target; the test counts it as an error.
    targets = np.where(table.labels == [len(classes) for classes in table.classes.values()], -1, table.labels)
    labels_NT = torch.from_numpy(targets)
    rows = [torch.from_numpy(table.part == number) for number in range(len(PARTS))]
    return _Data(table, vocabulary, [LabelledTexts(ids_NL[chosen], labels_NT[chosen]) for chosen in rows])


def _fit(data: _Data, groups: list[list[str]], study: TextStudy) -> _Fits:
    begun = time.perf_counter()
    models = [[_fit_one(data, group, seed, study.epochs) for group in groups] for seed in range(1, study.seeds + 1)]
    seconds = time.perf_counter() - begun
    predicted: dict[str, list[NDArray[np.int64]]] = {label: [] for label in study.labels}
    for of_seed in models:
        for model in of_seed:
            for label, logits_NC in text_logits(model, data.parts[2].ids_NL).items():
                predicted[label].append(logits_NC.argmax(1).numpy())
    return _Fits(models, predicted, seconds)


def _fit_one(data: _Data, labels: list[str], seed: int, epochs: int) -> TextClassifier:
    classes = {label: len(data.table.classes[label]) for label in labels}
    columns = [list(data.table.classes).index(label) for label in labels]
    training, validation = (LabelledTexts(part.ids_NL, part.labels_NT[:, columns]) for part in data.parts[:2])
    spec = TextSpec(cardinality=data.vocabulary.cardinality, classes=classes, seed=seed)
    return fit_text(spec, training, validation, TextBudget(epochs=epochs))


def _result(study: TextStudy, data: _Data, fits: Mapping[str, _Fits]) -> dict[str, Any]:
    tasks = {label: _task(study, data.table, label, fits) for label in study.labels}
    differences = [tasks[label]["joint_minus_separate"][metric] for label in tasks for metric in TEXT_METRICS]
    for difference, adjusted in zip(differences, holm([one["p"] for one in differences]), strict=True):
        difference["p_holm"] = adjusted
    table = data.table
    return {
        "table": study.table.name,
        "text": study.text,
        "split_by": table.split_by,
        "rows": {name: int((table.part == number).sum()) for number, name in enumerate(PARTS)},
        "without_words": table.without_words,
        "words": len(data.vocabulary.values),
        "seeds": study.seeds,
        "epochs": study.epochs,
        "replicates": study.replicates,
        "tasks": tasks,
        "parameters": {name: one.parameters() for name, one in fits.items()},
        "seconds": {name: round(one.seconds, 2) for name, one in fits.items()},
    }


def _task(study: TextStudy, table: TextTable, label: str, fits: Mapping[str, _Fits]) -> dict[str, Any]:
    column = list(table.classes).index(label)
    test = table.part == 2  # noqa: PLR2004  # the third of PARTS
    labels_N = table.labels[test, column]
    has_label = labels_N >= 0
    labels_N, texts_N = labels_N[has_label], table.distinct[test][has_label]
    trained = table.labels[table.part == 0, column]
    majority = np.bincount(trained[trained >= 0]).argmax()

    def measured(predicted: list[NDArray[np.int64]]) -> Replicates:
        chosen = [one_N[has_label] for one_N in predicted]
        return text_replicates(labels_N, chosen, texts_N, replicates=study.replicates, seed=0)

    joint, separate = (measured(fits[name].predicted[label]) for name in (JOINT, SEPARATE))
    return {
        "classes": len(table.classes[label]),
        "training_rows": int((trained >= 0).sum()),
        "test_rows": len(labels_N),
        "test_rows_of_new_classes": int((labels_N == len(table.classes[label])).sum()),
        "majority_accuracy": float((labels_N == majority).mean()),
        JOINT: _estimates([(1, joint)], least=0),
        SEPARATE: _estimates([(1, separate)], least=0),
        "joint_minus_separate": _estimates([(1, joint), (-1, separate)], least=-1),
    }


def _estimates(terms: Sequence[tuple[float, Replicates]], *, least: float) -> dict[str, dict[str, float]]:
    """Return the estimates by metric, their intervals cut at what the figure can be: from `least` to 1."""
    found = contrast(terms, names=TEXT_METRICS)
    return {
        name: one.as_dict() | {"low": max(one.low, least), "high": min(one.high, 1.0)} for name, one in found.items()
    }


def classified_rows(result: Mapping[str, Any]) -> pl.DataFrame:
    """Return the figures of a result as text, one row a task and metric, for a terminal."""
    rows = [
        {
            "task": label,
            "metric": metric,
            "majority": f"{task['majority_accuracy']:.4f}" if metric == TEXT_METRICS[0] else "",
            JOINT: _shown(task[JOINT][metric]),
            SEPARATE: _shown(task[SEPARATE][metric]),
            "joint - separate": _shown(task["joint_minus_separate"][metric], "+"),
            "p (Holm)": f"{task['joint_minus_separate'][metric]['p_holm']:.3f}",
        }
        for label, task in result["tasks"].items()
        for metric in TEXT_METRICS
    ]
    return pl.DataFrame(rows)


def _shown(estimate: Mapping[str, float], sign: str = "") -> str:
    return f"{estimate['value']:{sign}.4f} [{estimate['low']:{sign}.4f}, {estimate['high']:{sign}.4f}]"
