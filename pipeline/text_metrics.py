"""Accuracy and macro-F1 of one task's predicted classes, on the sample and on resamples of texts.

Shapes: N labelled texts, U distinct texts, R resamples, S seeds, M metrics, C classes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import Floats, Integers
from pipeline.significance import Replicates

TEXT_METRICS = ("accuracy", "macro_f1")
CELLS_AT_ONCE = 4_000_000


def text_replicates(
    labels_N: Integers, predicted: Sequence[Integers], texts_N: Integers, *, replicates: int, seed: int
) -> Replicates:
    """Measure one model's predictions of each seed on the sample and on resamples of its distinct texts.

    A label may be a class that no prediction gives. `texts_N` numbers distinct texts: equal ones are drawn together.
    The same labels, texts and seed give the same resamples, so that models may be compared row by row.

    Raises ValueError for less than one replicate.
    """
    if replicates < 1:
        raise ValueError(f"bootstrap replicates is {replicates}, expected 1 or more: 1000 is usual")
    _, texts_N = np.unique(texts_N, return_inverse=True)
    whole_1N = np.ones((1, len(labels_N)))
    values = [text_metrics(labels_N, one_N, whole_1N)[0] for one_N in predicted]
    draws = [
        np.stack([text_metrics(labels_N, one_N, weights_RN) for one_N in predicted], axis=1)
        for weights_RN in _resamples(texts_N, replicates, seed)
    ]
    return Replicates(np.stack(values), np.concatenate(draws))


def text_metrics(labels_N: Integers, predicted_N: Integers, weights_RN: Floats) -> Floats:
    """Return accuracy and macro-F1 of weighted texts, R M.

    Macro-F1 is the mean over the classes that the unweighted labels hold of 2 TP / (labelled + predicted); a class
    that some weights leave without either has 0.
    """
    right_N = (labels_N == predicted_N).astype(np.float64)
    accuracy_R = weights_RN @ right_N / weights_RN.sum(axis=1)
    f1_R: Floats = np.zeros(len(weights_RN))
    classes = np.unique(labels_N)
    for one in classes:
        both_R = weights_RN @ (right_N * (labels_N == one))
        sizes_R = weights_RN @ ((labels_N == one).astype(np.float64) + (predicted_N == one))
        f1_R += 2 * both_R / np.maximum(sizes_R, 1)
    return np.stack([accuracy_R, f1_R / len(classes)], axis=1)


def _resamples(texts_N: Integers, replicates: int, seed: int) -> Iterator[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    distinct = int(texts_N.max()) + 1
    step = max(1, CELLS_AT_ONCE // len(texts_N))
    for start in range(0, replicates, step):
        drawn = [
            np.bincount(generator.integers(distinct, size=distinct), minlength=distinct)[texts_N]
            for _ in range(min(step, replicates - start))
        ]
        yield np.stack(drawn).astype(np.float64)
