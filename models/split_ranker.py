"""The ranker in parts: what a user, an item and a pair of both add to its first layers is computed once for each.

Before its first activation the ranker is linear in the vectors of its columns, so that a first layer is a sum over
groups of columns. Shapes: N rows or pairs, U users, G groups (of a layer), H inputs (sets of embeddings), I input
width, W width of all first layers side by side, O outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from models.inputs import Columns, Features, InputLayer
from models.layers import SHARED_INPUT_DIMENSIONS, FirstLayer, GroupedLinear
from models.ranker import (
    DeepScorer,
    LinearScorer,
    Ranker,
    all_columns,
    context_columns,
    for_scoring,
    input_layer,
    linear_input_layer,
    outputs_of,
    trunk_columns,
)
from models.ranker_spec import RankerSpec


@dataclass(frozen=True)
class _Reader:
    """An input layer, the first layers that read it, and where in W their outputs begin."""

    columns: Columns
    inputs: InputLayer
    layers: list[FirstLayer]
    start: int
    build: Callable[[RankerSpec, Columns], InputLayer]


@dataclass(frozen=True)
class _Product:
    """One product of a part: the weights of one input, and the columns of W that it adds to."""

    input_number: int
    weight_IO: Tensor
    into: slice


class Part:
    """What some columns add to the first layers.

    Attributes:
        single: single-valued columns, in the order that rows hold them.
        numeric: likewise the numeric ones.
        pooled: likewise the multi-valued ones.
    """

    def __init__(self, split: "SplitRanker", names: set[str]) -> None:
        spec = self.spec = split.spec
        self.width = split.width
        self.single = [name for name in spec.single if name in names]
        self.numeric = [name for name in spec.numeric if name in names]
        self.pooled = [name for name in spec.pooled if name in names and name not in split.attended]
        self.table = split.table
        self.terms = [term for reader in split.readers if (term := self._term(reader))]

    def __call__(self, features: Features) -> Tensor:
        """Returns the part of rows that hold these columns and no others: (N, W) float32."""
        first_NW = torch.zeros(len(features), self.width)
        self.add_to(first_NW, features)
        return first_NW

    def add_to(self, first_NW: Tensor, features: Features) -> None:
        """Adds the part to other parts, in place."""
        with torch.inference_mode():
            for inputs, products in self.terms:
                _add(first_NW, inputs(features, self.table), products)

    def _term(self, reader: _Reader) -> tuple[InputLayer, list[_Product]] | None:
        columns, spec = reader.columns, self.spec
        single = [place for place in columns.single if spec.single[place] in self.single]
        numeric = [place for place in columns.numeric if spec.numeric[place] in self.numeric]
        pooled = {name: field for name, field in columns.pooled.items() if name in self.pooled}
        if not single and not numeric and not pooled:
            return None
        chosen = Columns(
            single={self.single.index(spec.single[place]): columns.single[place] for place in single},
            numeric=[self.numeric.index(spec.numeric[place]) for place in numeric],
            pooled=pooled,
        )
        inputs = reader.build(spec, chosen).eval()
        numbers = [list(columns.numeric).index(place) for place in numeric]
        # Every weight of a numeric encoding has its columns first.
        weights = {name: weight[numbers] for name, weight in reader.inputs.numeric.state_dict().items()}
        inputs.numeric.load_state_dict(weights)
        inputs.keep(reader.inputs.kept)
        embedded = [list(columns.single).index(place) for place in single]
        embedded += [len(columns.single) + list(columns.pooled).index(name) for name in pooled]
        return inputs, _products(reader, _rows_of(reader, embedded, numbers))


class Attention:
    """What the sequences that are weighted by the candidate add to the first layers."""

    def __init__(self, split: "SplitRanker") -> None:
        trunk = split.readers[0]
        places = list(trunk.columns.pooled)
        self.table, self.inputs = split.table, trunk.inputs
        self.layers = {name: trunk.inputs.attention_to(name) for name in split.attended}
        embedded = [len(trunk.columns.single) + places.index(name) for name in split.attended]
        self.products = _products(trunk, _rows_of(trunk, embedded, []))

    def add_to(self, first_NW: Tensor, histories: Mapping[str, Tensor], user_N: Tensor, candidate_N: Tensor) -> None:
        """Adds the part of pairs to other parts, in place.

        `histories` are the users' ids (U, L) by column, `user_N` the pairs' row numbers in them, `candidate_N` the ids
        of the pairs' candidates.
        """
        inputs, table = self.inputs, self.table
        with torch.inference_mode():
            field_1 = inputs.fields_F[[inputs.target]]
            candidate_ND = table(candidate_N.unsqueeze(1), fields=field_1).squeeze(1)
            attended = [
                layer.of_pairs(histories[name], user_N, candidate_ND, table) for name, layer in self.layers.items()
            ]
            _add(first_NW, inputs.of_groups(torch.stack(attended, dim=1)), self.products)


class SplitRanker:
    """Scores by sums of parts what `predict` scores by whole rows; equal but for rounding.

    Without the heads that only training needs, on the CPU, in evaluation mode, without gradients.

    Attributes:
        spec: the ranker's.
        width: W.
        constant_W: what every row adds: the first layers' biases.
        attended: names of the sequences that are weighted by the candidate: `attention` adds them, no part does.
        attention: None without such sequences.
    """

    def __init__(self, ranker: Ranker) -> None:
        self.spec, self.ranker = ranker.spec, for_scoring(ranker)
        scorer = self.ranker.scorer
        self.attended = [] if isinstance(scorer, LinearScorer) else list(self.spec.attention)
        self.table = scorer.table
        self.readers = _readers(scorer, self.spec)
        layers = [layer.linear for reader in self.readers for layer in reader.layers]
        self.shapes = [tuple(layer.bias_GO.shape) for layer in layers]
        self.constant_W = torch.cat([layer.bias_GO.detach().flatten() for layer in layers])
        self.width = len(self.constant_W)
        self.attention = Attention(self) if self.attended else None

    def part(self, names: set[str]) -> Part:
        """Returns the part of some columns; sequences that are weighted by the candidate are left out."""
        return Part(self, names)

    def outputs(self, first_NW: Tensor) -> Tensor:
        """Returns `spec.outputs()` of rows (N, O) float32 from the sum of all parts and the constant."""
        with torch.inference_mode():
            return outputs_of(self._logits(first_NW) + self.ranker.bias_T, self.spec)

    def _logits(self, first_NW: Tensor) -> Tensor:
        scorer = self.ranker.scorer
        if isinstance(scorer, LinearScorer):
            return first_NW
        widths = [groups * width for groups, width in self.shapes]
        firsts = [
            part_NO.view(len(first_NW), *shape)
            for part_NO, shape in zip(torch.split(first_NW, widths, dim=1), self.shapes, strict=True)
        ]
        of_context = [] if scorer.context is None else [firsts.pop()]
        logits_NT: Tensor = scorer.towers(scorer.body.finish(firsts))
        for first_NTO in of_context:
            assert scorer.context is not None
            logits_NT = logits_NT + scorer.context.towers.finish(first_NTO)
        return logits_NT


def _readers(scorer: DeepScorer | LinearScorer, spec: RankerSpec) -> list[_Reader]:
    if isinstance(scorer, LinearScorer):
        return [_linear_reader(scorer, spec)]
    layers = scorer.body.first_layers()
    readers = [_Reader(trunk_columns(spec), scorer.inputs, layers, 0, input_layer)]
    if scorer.context is not None:
        start = sum(layer.linear.bias_GO.numel() for layer in layers)
        first = scorer.context.towers.first_layer()
        readers.append(_Reader(context_columns(spec), scorer.context.inputs, [first], start, input_layer))
    return readers


def _linear_reader(scorer: LinearScorer, spec: RankerSpec) -> _Reader:
    """Writes the sum over columns as a linear layer, one identity matrix a column."""
    total = GroupedLinear(groups=1, input_width=scorer.inputs.width, output_width=spec.heads)
    count = scorer.inputs.width // spec.heads
    total.weight_GIO = nn.Parameter(torch.eye(spec.heads).repeat(count, 1).unsqueeze(0), requires_grad=False)
    return _Reader(all_columns(spec), scorer.inputs, [FirstLayer(total, [[0]])], 0, linear_input_layer)


def _rows_of(reader: _Reader, embedded: Sequence[int], numeric: Sequence[int]) -> Tensor:
    """Returns the numbers of the first layers' inputs that some of the reader's columns give, in order (I)."""
    columns, inputs = reader.columns, reader.inputs
    embeddings = len(columns.single) + len(columns.pooled)
    width = inputs.embedding_width
    number_width = (inputs.width - embeddings * width) // max(1, len(columns.numeric))
    starts = [(place * width, width) for place in embedded]
    starts += [(embeddings * width + place * number_width, number_width) for place in numeric]
    rows = [torch.arange(start, start + count) for start, count in starts]
    return torch.cat(rows)


def _products(reader: _Reader, rows_I: Tensor) -> list[_Product]:
    """Returns the products that add some inputs to the first layers: one for each input and run of columns of W."""
    inputs = len(reader.inputs.kept)
    columns: list[list[Tensor]] = [[] for _ in range(inputs)]
    weights: list[list[Tensor]] = [[] for _ in range(inputs)]
    start = reader.start
    for layer in reader.layers:
        groups, _, width = layer.linear.weight_GIO.shape
        for group, reads in zip(range(groups), layer.reads, strict=True):
            for number in reads if inputs > 1 else [0]:
                columns[number].append(torch.arange(start, start + width))
                weights[number].append(layer.linear.weight_GIO.detach()[group][rows_I])
            start += width
    return [
        product
        for number in range(inputs)
        if columns[number]
        for product in _runs(number, torch.cat(columns[number]), torch.cat(weights[number], dim=1))
    ]


def _runs(number: int, columns_O: Tensor, weight_IO: Tensor) -> list[_Product]:
    """Cuts a product where its columns leave gaps."""
    breaks = (np.flatnonzero(np.diff(columns_O.numpy()) != 1) + 1).tolist()
    bounds = [0, *breaks, len(columns_O)]
    return [
        _Product(number, weight_IO[:, a:b].contiguous(), slice(int(columns_O[a]), int(columns_O[b - 1]) + 1))
        for a, b in pairwise(bounds)
    ]


def _add(first_NW: Tensor, x: Tensor, products: Sequence[_Product]) -> None:
    """Adds products to the first layers, in place, of inputs (N, I), or (N, H, I)."""
    for product in products:
        x_NI = x if x.dim() == SHARED_INPUT_DIMENSIONS else x[:, product.input_number]
        first_NW[:, product.into].addmm_(x_NI, product.weight_IO)
