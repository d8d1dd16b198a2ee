"""The metrics of translations against their definitions and against sacrebleu's own corpus score."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU

from models.sequence import END, UNKNOWN
from pipeline.metrics import resamples
from pipeline.translate import Translation, train_translators
from pipeline.translation_metrics import Scored, replicate_translations, score

REFERENCES = ["a b c d e f", "a b", "c d e f a", "b b b b c"]
HYPOTHESES = ["a b c d f f", "a b", "c d e f", "b b b c c"]


def _scored(hypotheses: list[str] = HYPOTHESES) -> Scored:
    reference = torch.tensor([[4, 5, END, 0], [UNKNOWN, END, 0, 0], [6, 6, 6, END], [4, END, 0, 0]])
    predicted = torch.tensor([[4, 6, END, 9], [UNKNOWN, END, 9, 9], [6, 6, 5, END], [4, END, 9, 9]])
    return score(predicted_RL=predicted, reference_RL=reference, hypotheses=hypotheses, references=REFERENCES)


def test_token_accuracy_counts_no_padding_and_no_unknown_token_and_a_match_is_the_whole_text() -> None:
    found = replicate_translations([_scored()], np.arange(4), replicates=1, seed=0).values_SM[0]
    assert found[0] == pytest.approx((2 + 1 + 3 + 2) / (3 + 2 + 4 + 2))
    assert found[1] == pytest.approx(1 / 4)


def test_bleu_is_sacrebleus_on_the_sample_and_on_each_resample_of_sources() -> None:
    metric, sources = BLEU(tokenize="none"), np.array([0, 1, 1, 2])
    made = replicate_translations([_scored()], sources, replicates=5, seed=3)
    assert made.values_SM[0, 2] == pytest.approx(metric.corpus_score(HYPOTHESES, [REFERENCES]).score)
    for draw, counts in enumerate(next(iter(resamples(np.ones((3, 1)), 5, 3)))):
        rows = [row for row, source in enumerate(sources) for _ in range(int(counts[source]))]
        expected = metric.corpus_score([HYPOTHESES[row] for row in rows], [[REFERENCES[row] for row in rows]])
        assert made.draws_RSM[draw, 0, 2] == pytest.approx(expected.score)


def test_models_with_equal_arguments_are_measured_on_the_same_resamples() -> None:
    one = replicate_translations([_scored(), _scored(REFERENCES)], np.arange(4), replicates=9, seed=1)
    other = replicate_translations([_scored()], np.arange(4), replicates=9, seed=1)
    assert np.array_equal(one.draws_RSM[:, 0], other.draws_RSM[:, 0])
    assert (one.draws_RSM[:, 1, 1:] == [1.0, pytest.approx(100.0)]).all()


def test_without_sacrebleu_the_message_says_what_to_install_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ValueError, match=r"BLEU needs sacrebleu: pip install 'counterpoise\[translate\]'"):
        train_translators(Translation(tmp_path / "none.csv", "a", ("b", "c")), tmp_path / "out")
