"""How good translations are: token accuracy, exact match and BLEU, with what a bootstrap over sources needs.

The only file that imports sacrebleu. Shapes: R pairs, L tokens, U sources, S seeds, D draws of the bootstrap, M
metrics, N sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.sequence import PADDING, UNKNOWN
from pipeline.metrics import Floats, resamples
from pipeline.significance import Estimate, Replicates

TRANSLATION_METRICS = {"token_accuracy": 1.0, "exact_match": 1.0, "bleu": 100.0}
"""In order, with the most that each can be; the least is 0. Where no text has four tokens, BLEU is 0 throughout."""
ORDERS = 4
"""Lengths of the n-grams of BLEU."""


@dataclass(frozen=True)
class Scored:
    """What the metrics of some pairs sum up, row by row."""

    sums_RN: Floats
    """Right tokens, tokens, exact matches, pairs, right n-grams and n-grams by length, tokens of both texts."""


def require_bleu() -> None:
    """Refuse to begin what could not be measured in the end.

    Raises:
        ValueError: sacrebleu is not installed.
    """
    try:
        import_module("sacrebleu.metrics.bleu")
    except ImportError as error:
        raise ValueError("BLEU needs sacrebleu: pip install 'counterpoise[translate]'") from error


def score(
    *, predicted_RL: Tensor, reference_RL: Tensor, hypotheses: Sequence[str], references: Sequence[str]
) -> Scored:
    """Score translations of some pairs.

    Args:
        predicted_RL: the likeliest id at each place, given the reference's ids before it.
        reference_RL: the reference's ids with END, padded with 0; an unknown token is never right.
        hypotheses: what was decoded, tokens one space apart.
        references: likewise.
    """
    counts = reference_RL != PADDING
    right = (predicted_RL == reference_RL) & counts & (reference_RL != UNKNOWN)
    exact = [float(one == other) for one, other in zip(hypotheses, references, strict=True)]
    head = np.stack([right.sum(1).numpy(), counts.sum(1).numpy(), exact, np.ones(len(exact))], axis=1)
    return Scored(np.concatenate([head, _ngrams(hypotheses, references)], axis=1))


def replicate_translations(
    seeds: Sequence[Scored], sources: NDArray[np.int64], *, replicates: int, seed: int
) -> Replicates:
    """Measure the trainings of one model on the same resamples of sources; (R,) are the sources' numbers.

    Models that are measured with equal sources, replicates and seed are measured on the same resamples.
    """
    count = int(sources.max()) + 1
    sums_SUN = np.stack([_by_source(one.sums_RN, sources, count) for one in seeds])
    whole = _metrics(sums_SUN.sum(axis=1))
    draws = [
        _metrics(np.einsum("du,sun->dsn", counts_DU, sums_SUN))
        for counts_DU in resamples(np.ones((count, 1)), replicates, seed)
    ]
    return Replicates(whole, np.concatenate(draws))


def bounded(estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return estimates by metric and name, their intervals cut at what the figure can be."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric, most in TRANSLATION_METRICS.items():
        found[metric] = {name: one[metric].as_dict() for name, one in estimates.items()}
        for name, one in found[metric].items():
            one["low"] = max(one["low"], -most if name == "difference" else 0.0)
            one["high"] = min(one["high"], most)
    return found


def _by_source(sums_RN: Floats, sources: NDArray[np.int64], count: int) -> Floats:
    sums_UN = np.zeros((count, sums_RN.shape[1]))
    np.add.at(sums_UN, sources, sums_RN)
    return sums_UN


def _metrics(sums_N: Floats) -> Floats:
    """Return the metrics (..., M) of sums (..., N)."""
    rows = sums_N.reshape(-1, sums_N.shape[-1])
    values = np.stack([rows[:, 0] / rows[:, 1], rows[:, 2] / rows[:, 3], [_bleu(row[4:]) for row in rows]], axis=1)
    return values.reshape(*sums_N.shape[:-1], len(TRANSLATION_METRICS))


def _ngrams(hypotheses: Sequence[str], references: Sequence[str]) -> Floats:
    """Return each pair's right n-grams and n-grams by length, and both texts' lengths: (R, 10)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none")  # tokens are what white space says, as everywhere else
    scores = [metric.corpus_score([one], [[other]]) for one, other in zip(hypotheses, references, strict=True)]
    return np.array([[*found.counts, *found.totals, found.sys_len, found.ref_len] for found in scores], dtype=float)


def _bleu(sums: Floats) -> float:
    from sacrebleu.metrics.bleu import BLEU

    counts = [int(one) for one in sums]
    found = BLEU.compute_bleu(
        correct=counts[:ORDERS],
        total=counts[ORDERS : 2 * ORDERS],
        sys_len=counts[-2],
        ref_len=counts[-1],
        smooth_method="exp",  # the default of sacrebleu's corpus BLEU
    )
    return float(found.score)
