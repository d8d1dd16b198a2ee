"""What each model of a run begins from: its seed, or the champion that featurize copied into the run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from features.encoding import FIRST_KNOWN, Encoder, Vocabulary, load_encoder
from models.ranker import Ranker, load_ranker
from models.retriever import Retriever, load_retriever
from models.warm_start import warm_start
from pipeline.config import Config
from pipeline.featurize import BASE
from pipeline.workspace import read_json


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """What sets the initial weights of each model, in place; None leaves them as the seed drew them.

    Attributes:
        ranker: of the ranker.
        baseline: of the logistic regression; None too where the base was saved without one.
        retriever: of the two towers.
        record: for training.json: the base's version and each field's number of known and of new ids.
    """

    ranker: Callable[[Ranker], None] | None = None
    baseline: Callable[[Ranker], None] | None = None
    retriever: Callable[[Retriever], None] | None = None
    record: dict[str, Any] | None = None


def read_beginnings(config: Config, features: Path, encoder: Encoder) -> Beginnings:
    """Return what the models of a run begin from: with training.warm_start the base that featurize recorded.

    Args:
        config: its training.warm_start and training.new_ids.
        features: the run's folder of features.
        encoder: the run's encoder, which knows all that the base knows.

    Raises:
        ValueError: featurize has not run, or a file of the base is damaged.
    """
    if not config.training.warm_start:
        return Beginnings()
    version = read_json(features / "base.json", "featurize")["base_version"]
    folder = features / BASE
    known = known_ids(encoder, load_encoder(folder / "encoder.json"))
    options: dict[str, Any] = {"known": known, "new_ids": config.training.new_ids}
    has_baseline = (folder / "logistic_regression").is_dir()
    counts = {name: len(ids) for name, ids in known.items()}
    return Beginnings(
        ranker=partial(warm_start, base=load_ranker(folder / "ranker"), **options),
        baseline=partial(warm_start, base=load_ranker(folder / "logistic_regression"), **options)
        if has_baseline
        else None,
        retriever=partial(warm_start, base=load_retriever(folder / "retriever"), **options),
        record={
            "base_version": version,
            "known_ids": counts,
            "new_ids": {name: len(ids) - counts[name] for name, ids in _trained_ids(encoder).items()},
        },
    )


def known_ids(encoder: Encoder, base: Encoder) -> dict[str, torch.Tensor]:
    """Return for each field the ids (K) int64, 3 or more, that mean the same to both encoders.

    These are all of the base's values, and its hash buckets where the number and the place of buckets are the same.
    """
    known = {}
    for name, ids in _trained_ids(base).items():
        ours, theirs = encoder.vocabularies[name], base.vocabularies[name]
        assert set(theirs.ids) <= set(ours.ids), name
        same_buckets = (ours.first_bucket, ours.buckets) == (theirs.first_bucket, theirs.buckets)
        known[name] = ids if same_buckets else ids[: len(theirs.ids)]
    return known


def _trained_ids(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: _ids(vocabulary) for name, vocabulary in encoder.vocabularies.items()}


def _ids(vocabulary: Vocabulary) -> torch.Tensor:
    """Return the ids of values, then those of buckets."""
    buckets = range(vocabulary.first_bucket, vocabulary.first_bucket + vocabulary.buckets)
    ids = torch.tensor([*vocabulary.ids, *buckets], dtype=torch.int64)
    assert bool((ids >= FIRST_KNOWN).all())
    return ids
