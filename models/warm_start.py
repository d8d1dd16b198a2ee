"""Begin a model from a trained one whose fields had fewer ids.

Shapes: C ids of a field, K known ids of a field, D width.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, TypeVar

import torch
from torch import Tensor

from models.embedding import FusedEmbedding
from models.losses import AUXILIARY_HEADS
from models.ranker import Ranker, RankerSpec
from models.retriever import Retriever, RetrieverSpec

Model = TypeVar("Model", Ranker, Retriever)

FIRST_KNOWN = 3
# These change neither what a weight means nor its shape.
FREE = {
    "seed",
    "dropout",
    "gate_dropout",
    "load_balance",
    "temperature",
    "frequency_scale",
    "categorical_cardinalities",
}


def warm_start(
    fresh: Model, *, base: Model, known: Mapping[str, Tensor], new_ids: Literal["mean", "seed"] = "mean"
) -> None:
    """Copies a trained model's weights into a fresh one, in place.

    The embeddings of padding, missing, unseen and known ids are the base's bit for bit. All other ids are new: they
    begin at the mean of the field's known rows ('mean'), or stay as the seed drew them ('seed', and 'mean' in a field
    without known ids). `known` names for each field the ids (K) int64, 3 or more, that mean the same in both models.
    All other weights are the base's, biases included. Raises ValueError when the two differ in more than the number of
    ids, the seed and what acts in training alone.
    """
    _check_alike(fresh, base)
    weights = {name: weight.detach().clone() for name, weight in base.state_dict().items()}
    modules = dict(base.named_modules())
    for name, module in fresh.named_modules():
        if isinstance(module, FusedEmbedding):
            trained = modules[name]
            assert isinstance(trained, FusedEmbedding), name
            rows = _rows(fresh, module), _rows(base, trained)
            weights[f"{name}.table.weight"] = _grown(module, trained, rows, known, new_ids)
    fresh.load_state_dict(weights)


def _rows(model: Ranker | Retriever, embedding: FusedEmbedding) -> dict[str, tuple[int, int]]:
    """Returns for each field its offset in the table and its number of ids."""
    offsets, sizes = embedding.offsets_F.tolist(), embedding.cardinalities_F.tolist()
    return dict(zip(model.spec.categorical_cardinalities, zip(offsets, sizes, strict=True), strict=True))


def _grown(
    fresh: FusedEmbedding,
    base: FusedEmbedding,
    rows: tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]],
    known: Mapping[str, Tensor],
    new_ids: str,
) -> Tensor:
    """Returns the fresh table's rows, with the base's where an id is known."""
    weight, trained = fresh.table.weight.detach().clone(), base.table.weight.detach()
    for name, (offset, size) in rows[0].items():
        base_offset, base_size = rows[1][name]
        ids_K = known[name]
        assert bool(((ids_K >= FIRST_KNOWN) & (ids_K < min(size, base_size))).all()), name
        if new_ids == "mean" and len(ids_K):
            mean_D = trained[ids_K + base_offset].mean(0, dtype=torch.float64)
            weight[offset + FIRST_KNOWN : offset + size] = mean_D.to(weight.dtype)
        copied = torch.cat([torch.arange(1, min(FIRST_KNOWN, size, base_size)), ids_K])
        weight[copied + offset] = trained[copied + base_offset]
    return weight


def _check_alike(fresh: Ranker | Retriever, base: Ranker | Retriever) -> None:
    differences = [
        _difference(field.name, getattr(fresh.spec, field.name), getattr(base.spec, field.name))
        for field in fields(fresh.spec)
        if field.name not in FREE and not _same(field.name, fresh.spec, base.spec)
    ]
    ours, theirs = (list(model.spec.categorical_cardinalities) for model in (fresh, base))
    if set(ours) != set(theirs):
        differences.append(_difference("fields", sorted(ours), sorted(theirs)))
    if differences:
        raise ValueError(
            f"the model to begin from differs in {'; '.join(differences)}: undo the change, or train once without a "
            "warm start"
        )


def _same(name: str, ours: RankerSpec | RetrieverSpec, theirs: RankerSpec | RetrieverSpec) -> bool:
    """Tells whether a field of two specs asks for the same weights."""
    here, there = getattr(ours, name), getattr(theirs, name)
    return AUXILIARY_HEADS[here] == AUXILIARY_HEADS[there] if name == "conversion_loss" else here == there


def _difference(name: str, ours: object, theirs: object) -> str:
    """Tells two values of a spec apart; of columns only those that one of them lacks."""
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return f"{name} (here {ours!r}, there {theirs!r})"
    here, there = ([value for value in one if value not in other] for one, other in ((ours, theirs), (theirs, ours)))
    return f"{name} (only here {here}, only there {there})" if here or there else f"the order of {name}"
