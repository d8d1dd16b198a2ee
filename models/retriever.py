"""The retriever: two towers that meet in a click space and a conversion space.

Shapes: B batch, 2 spaces (0 click, 1 conversion), S space width, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.embedding import FusedEmbedding
from models.inputs import Columns, Features, InputLayer, check_fields
from models.layers import ExpertLayers
from models.numeric import NumericSize
from models.serialization import load_module, save_module

__all__ = [
    "Features",
    "Retriever",
    "RetrieverSpec",
    "in_batch_softmax",
    "load_retriever",
    "query_vectors",
    "save_retriever",
]

SPACES = 2


@dataclass(frozen=True, kw_only=True)
class RetrieverSpec:
    """All that determines a retriever's architecture and its initial weights."""

    categorical_cardinalities: dict[str, int]
    """Number of ids of each field of the embedding table, which both towers share."""
    bins: int
    """Quantile bins of a numeric column."""
    user_single: list[str]
    """Single-valued categorical columns of a user, in order; each is a field of the same name."""
    item_single: list[str]
    user_numeric: list[str]
    """Numeric columns of a user, in order."""
    item_numeric: list[str]
    user_pooled: dict[str, str]
    """Multi-valued columns of a user, each with the field whose embeddings it averages."""
    item_pooled: dict[str, str]
    zero_bin: bool = False
    """Whether a numeric column's zeros may lie apart, at position bins + 2."""
    embedding_width: int = 16
    numeric_width: int = 8
    hidden: tuple[int, ...] = (128, 64)
    """Widths of each tower's layers below its two spaces."""
    space_width: int = 32
    """Width of each of the two spaces."""
    temperature: float = 0.1
    """Divides the cosines in the training loss; without effect on the order of items."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)


class Tower(nn.Module):
    """Maps one side's columns to a unit vector in each space."""

    def __init__(self, spec: RetrieverSpec, columns: Columns) -> None:
        super().__init__()
        self.space_width = spec.space_width
        numeric = NumericSize(bins=spec.bins, width=spec.numeric_width, zero_bin=spec.zero_bin)
        self.inputs = InputLayer(columns, numeric=numeric, embedding_width=spec.embedding_width)
        self.layers = ExpertLayers(experts=1, input_width=self.inputs.width, hidden=spec.hidden)
        self.output = nn.Linear(spec.hidden[-1], SPACES * spec.space_width)

    def forward(self, features: Features, table: FusedEmbedding) -> Tensor:
        """Returns vectors (B, 2, S) of length 1 in each space."""
        hidden_BD = self.layers(self.inputs(features, table)).squeeze(1)
        return nn.functional.normalize(self.output(hidden_BD).unflatten(1, (SPACES, self.space_width)), dim=-1)


class Retriever(nn.Module):
    """Places users and items in a click space and in a conversion space, each with its own vectors.

    Equal specs give equal weights; the global random state is left alone.
    """

    def __init__(self, spec: RetrieverSpec) -> None:
        super().__init__()
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self.table = FusedEmbedding(
                cardinalities=list(spec.categorical_cardinalities.values()), width=spec.embedding_width
            )
            self.user_tower = Tower(
                spec,
                _columns(spec, single=spec.user_single, numeric=spec.user_numeric, pooled=spec.user_pooled),
            )
            self.item_tower = Tower(
                spec,
                _columns(spec, single=spec.item_single, numeric=spec.item_numeric, pooled=spec.item_pooled),
            )

    def users(self, features: Features) -> Tensor:
        """Returns the users' vectors (B, 2, S) float32, from the spec's user columns."""
        users_B2S: Tensor = self.user_tower(features, self.table)
        return users_B2S

    def items(self, features: Features) -> Tensor:
        """Returns the items' vectors (B, 2, S) float32, from the spec's item columns.

        An index holds them as (B, 2S).
        """
        items_B2S: Tensor = self.item_tower(features, self.table)
        return items_B2S


def query_vectors(users_B2S: Tensor, *, conversion_weight: float) -> Tensor:
    """Scales the two halves of user vectors, so that one index serves every blend: (B, 2, S) to (B, 2S).

    The inner product with an item's vector (2S) is (1 - w) * click score + w * conversion score.
    Raises ValueError for a weight outside 0..1.
    """
    if not 0.0 <= conversion_weight <= 1.0:
        raise ValueError(f"conversion_weight is {conversion_weight}, expected a share between 0 and 1")
    scale_21 = users_B2S.new_tensor([[1.0 - conversion_weight], [conversion_weight]])
    return (users_B2S * scale_21).flatten(1)


def in_batch_softmax(
    users_BS: Tensor,
    items_BS: Tensor,
    *,
    item_ids_B: Tensor,
    log_q_B: Tensor,
    weights_B: Tensor,
    temperature: float,
) -> Tensor:
    """Averages over weighted rows the softmax loss of a row's item among the batch's items, in one space.

    `log_q_B` is the log-probability that a row drawn at random has this row's item. Each score is lowered by
    the log-probability that its item is in the batch at all: the softmax over a sample would otherwise punish
    the items that are drawn often. Another row with the positive's item is no negative, and an item drawn
    several times is one negative. A row of weight 0 serves only as negative: the conversion space gives 1
    to rows with a conversion and 0 to the others. When all weights are 0 the loss is 0.
    Source: Bengio and Senecal 2008; Yi et al. 2019, section 4.
    """
    scores_BB = users_BS @ items_BS.T / temperature - _log_inclusion(log_q_B)
    same_item_BB = item_ids_B.unsqueeze(1) == item_ids_B
    is_repeat_B = same_item_BB.tril(-1).any(1)
    positive_BB = torch.eye(len(item_ids_B), dtype=torch.bool, device=item_ids_B.device)
    scores_BB = scores_BB.masked_fill((same_item_BB | is_repeat_B) & ~positive_BB, -torch.inf)
    loss_B = scores_BB.logsumexp(1) - scores_BB.diagonal()
    return (weights_B * loss_B).sum() / weights_B.sum().clamp(min=torch.finfo(loss_B.dtype).tiny)


def _log_inclusion(log_q_B: Tensor) -> Tensor:
    # log(1 - (1 - q)^B), that is log q + log B for rare items. With log q itself, which suits a sample that
    # keeps its repeats, but only the positive's repeats masked, frequent items came out wrong: KL from the
    # true p(item | user) 0.045, here 0.0004 (8 items, batch 64), 0.0071, here 0.0007 (50 items, batch 256).
    q_B = log_q_B.clamp(max=0.0).exp()
    return (-torch.expm1(len(log_q_B) * torch.log1p(-q_B))).log()


def save_retriever(retriever: Retriever, folder: Path) -> None:
    """Writes the retriever's weights (safetensors) and spec (JSON) into a folder."""
    save_module(retriever, retriever.spec, folder)


def load_retriever(folder: Path) -> Retriever:
    """Reads a saved retriever onto the CPU; ValueError when a file is missing, damaged or another model's."""
    return load_module(folder, RetrieverSpec, Retriever)


def _check(spec: RetrieverSpec) -> None:
    singles, pooled = [*spec.user_single, *spec.item_single], {**spec.user_pooled, **spec.item_pooled}
    check_fields([*singles, *pooled.values()], spec.categorical_cardinalities)
    for side, inputs in (
        ("user", [*spec.user_single, *spec.user_numeric, *spec.user_pooled]),
        ("item", [*spec.item_single, *spec.item_numeric, *spec.item_pooled]),
    ):
        if not inputs:
            raise ValueError(f"the {side} tower has no input: name at least one column of the {side}")
    if not spec.hidden:
        raise ValueError("hidden is empty, expected the width of at least one layer, such as (128, 64)")
    if spec.temperature <= 0.0:
        raise ValueError(f"temperature is {spec.temperature}, expected a number above 0, such as 0.1")


def _columns(spec: RetrieverSpec, *, single: Sequence[str], numeric: Sequence[str], pooled: dict[str, str]) -> Columns:
    field_of = {name: field for field, name in enumerate(spec.categorical_cardinalities)}
    return Columns(
        single={column: field_of[name] for column, name in enumerate(single)},
        numeric=range(len(numeric)),
        pooled={name: field_of[field_name] for name, field_name in pooled.items()},
    )
