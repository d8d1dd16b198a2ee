"""The ranker: from encoded columns to the logits of click, of conversion given a click, and of further tasks.

Shapes: B batch, N rows, T task (0 click, 1 conversion given a click, then further tasks), C columns, D width,
O outputs.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.embedding import FusedEmbedding
from models.entire_space import TASKS, entire_space_probabilities
from models.experts import BODIES, GatedBody, input_groups
from models.extra_tasks import extra_outputs
from models.gating import GateLevel
from models.inputs import Columns, Features, InputLayer
from models.layers import SHARED_INPUT_DIMENSIONS
from models.losses import AUXILIARY_HEADS
from models.numeric import NumericSize
from models.pruning import inputs_of, keep_groups, keep_tasks
from models.ranker_spec import LINEAR, RankerSpec, body_size, numeric_size
from models.serialization import load_module, save_module
from models.towers import TaskTowers

__all__ = ["Features", "Ranker", "RankerSpec", "load_ranker", "predict", "save_ranker"]

CONTEXT_HIDDEN_WIDTH = 32


class ContextBias(nn.Module):
    """Scores the context columns alone (position, surface, hour)."""

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.inputs = input_layer(spec, context_columns(spec))
        self.towers = TaskTowers(tasks=spec.heads, input_width=self.inputs.width, hidden=(CONTEXT_HIDDEN_WIDTH,))

    def forward(self, features: Features, table: FusedEmbedding) -> Tensor:
        """Returns logits (B, T)."""
        x = self.inputs(features, table)
        # STEM's shared embeddings are no task's: the context has no use for them.
        logits_BT: Tensor = self.towers(x if x.dim() == SHARED_INPUT_DIMENSIONS else x[:, : self.heads])
        return logits_BT


class DeepScorer(nn.Module):
    """Scores by a body and task towers, and adds a bias from the context.

    The trunk does not see the context: a change of context columns moves the logits of all candidates alike, unless a
    context number depends on the item too.
    """

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        self.table = FusedEmbedding(
            cardinalities=list(spec.categorical_cardinalities.values()),
            width=input_groups(spec.body, spec.heads, task_embeddings=spec.task_embeddings) * spec.embedding_width,
        )
        self.inputs = input_layer(spec, trunk_columns(spec))
        self.body = BODIES[spec.body](body_size(spec, input_width=self.inputs.width))
        self.towers = TaskTowers(tasks=spec.heads, input_width=spec.hidden[-1], hidden=spec.tower)
        self.context = ContextBias(spec) if spec.context or spec.context_numeric else None

    def forward(self, features: Features) -> Tensor:
        """Returns logits (B, T)."""
        return self.forward_with_gates(features)[0]

    def forward_with_gates(self, features: Features) -> tuple[Tensor, list[Tensor]]:
        """Returns logits (B, T) beside the body's expert weights level by level; none for a body without gates."""
        x = self.inputs(features, self.table)
        body, gates = self.body, list[Tensor]()
        if isinstance(body, GatedBody):
            output_BTD, gates = body.forward_with_gates(x)
        else:
            output_BTD = body(x)
        logits_BT: Tensor = self.towers(output_BTD)
        return logits_BT if self.context is None else logits_BT + self.context(features, self.table), gates

    def gate_levels(self, tasks: Sequence[str]) -> list[GateLevel]:
        """Names the body's gates and experts level by level; none for a body without gates."""
        return self.body.gate_levels(tasks) if isinstance(self.body, GatedBody) else []


class LinearScorer(nn.Module):
    """Scores by logistic regression: the baseline, without interactions.

    Each id and each knot has one weight a task.
    """

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.table = FusedEmbedding(cardinalities=list(spec.categorical_cardinalities.values()), width=spec.heads)
        self.inputs = linear_input_layer(spec, all_columns(spec))

    def forward(self, features: Features) -> Tensor:
        """Returns logits (B, T)."""
        weights_BCT: Tensor = self.inputs(features, self.table).unflatten(1, (-1, self.heads))
        return weights_BCT.sum(1)


class Ranker(nn.Module):
    """Predicts the logits of click and of conversion given a click.

    Equal specs give equal weights; the global random state is left alone.
    """

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self.scorer = LinearScorer(spec) if spec.body == LINEAR else DeepScorer(spec)
        self.bias_T = nn.Parameter(torch.zeros(spec.heads))

    def forward(self, features: Features) -> Tensor:
        """Returns logits (B, T) float32; the context is part of them."""
        logits_BT: Tensor = self.scorer(features) + self.bias_T
        return logits_BT

    def start_at(self, *, click_rate: float, conversion_rate: float, extra: Mapping[str, float] | None = None) -> None:
        """Sets the bias so that an untrained ranker predicts the base rates, and the mean of each value.

        Rates are strictly between 0 and 1, means above 0; `extra` has those of further tasks within their spaces, by
        name. Without it rare tasks spend their first steps on learning that they are rare. An imputed conversion
        starts at the conversion's rate, a counterfactual one at what is left of 1.
        """
        binary = {name: (extra or {})[name] for name in self.spec.binary_tasks}
        rates = {"click": click_rate, "conversion": conversion_rate, **binary}
        means = {name: (extra or {})[name] for name in self.spec.value_tasks}
        if wrong := {name: rate for name, rate in rates.items() if not 0 < rate < 1}:
            raise ValueError(f"base rates are {wrong}, expected all between 0 and 1")
        if wrong := {name: mean for name, mean in means.items() if not mean > 0}:
            raise ValueError(f"base means are {wrong}, expected all above 0")
        rates_T = torch.tensor(list(rates.values()), dtype=torch.float64)
        means_T = torch.tensor(list(means.values()), dtype=torch.float64)
        with torch.no_grad():
            self.bias_T[: len(rates) + len(means)].copy_(torch.cat([torch.logit(rates_T), means_T.log()]))
            for head, sign in {"imputation": 1, "counterfactual": -1}.items():
                if head in AUXILIARY_HEADS[self.spec.conversion_loss]:
                    self.bias_T[self.spec.tasks().index(head)] = sign * self.bias_T[1]

    def forward_with_gates(self, features: Features) -> tuple[Tensor, list[Tensor]]:
        """Returns logits (B, T) and, of the same pass, what `gates` returns."""
        if isinstance(self.scorer, LinearScorer):
            return self(features), []
        logits_BT, gates = self.scorer.forward_with_gates(features)
        return logits_BT + self.bias_T, gates

    def gates(self, features: Features) -> list[Tensor]:
        """Returns the experts' weights (B, N, E) of N gates level by level; none for a body without gates."""
        return self.forward_with_gates(features)[1]

    def gate_levels(self) -> list[GateLevel]:
        """Returns names of gates and experts, and which gate sees which, in the order of `gates`."""
        return self.scorer.gate_levels(self.spec.tasks()) if isinstance(self.scorer, DeepScorer) else []

    def gate_names(self) -> list[list[str]]:
        """Returns the names of the N gates level by level, such as click, conversion and shared."""
        return [level.gates for level in self.gate_levels()]

    def expert_names(self) -> list[list[str]]:
        """Returns the names of the E experts level by level, such as click 1 and shared 1."""
        return [level.experts for level in self.gate_levels()]


def predict(ranker: Ranker, features: Features, batch_size: int) -> NDArray[np.float32]:
    """Returns `spec.outputs()` of N rows: (N, O) float32, (0, O) for no rows.

    Runs in evaluation mode on the ranker's device, and leaves the ranker's mode as it was.
    """
    device = next(ranker.parameters()).device
    outputs_NO = np.empty((len(features), len(ranker.spec.outputs())), dtype=np.float32)
    scoring = for_scoring(ranker)
    with torch.inference_mode():
        for start in range(0, len(features), batch_size):
            rows = slice(start, start + batch_size)
            outputs_NO[rows] = outputs_of(scoring(features.slice(rows).to(device)), ranker.spec).cpu().numpy()
    return outputs_NO


def outputs_of(logits_BT: Tensor, spec: RankerSpec) -> Tensor:
    """Returns `spec.outputs()` from logits, of which those that only training needs are not read: (B, O) float32."""
    base_B3 = entire_space_probabilities(logits_BT[:, :TASKS])
    return torch.cat([base_B3, extra_outputs(logits_BT, spec.binary_tasks, spec.value_tasks)], dim=1)


def for_scoring(ranker: Ranker) -> Ranker:
    """Returns a ranker of the same outputs in evaluation mode, without the heads that only training needs.

    What serves these heads alone is left out too: see `keep_tasks`. Weights are those of the given ranker, not copies,
    where they are whole. The linear ranker keeps all heads: they cost it little.
    """
    weights = [*ranker.parameters(), *ranker.buffers()]
    scoring = copy.deepcopy(ranker, {id(weight): weight for weight in weights}).eval()
    tasks = ranker.spec.heads - len(AUXILIARY_HEADS[ranker.spec.conversion_loss])
    scorer = scoring.scorer
    if tasks < ranker.spec.heads and isinstance(scorer, DeepScorer):
        inputs = keep_tasks(scorer.body, tasks)
        scorer.inputs.keep(inputs_of(inputs, scorer.inputs.groups))
        keep_groups(scorer.towers, torch.arange(tasks))
        if scorer.context is not None:
            scorer.context.heads = tasks
            keep_groups(scorer.context.towers, torch.arange(tasks))
        scoring.bias_T = nn.Parameter(ranker.bias_T.detach()[:tasks], requires_grad=False)
    return scoring


def save_ranker(ranker: Ranker, folder: Path) -> None:
    """Writes the ranker's weights (safetensors) and spec (JSON) into a folder."""
    save_module(ranker, ranker.spec, folder)


def load_ranker(folder: Path) -> Ranker:
    """Reads a saved ranker onto the CPU; ValueError when a file is missing, damaged or of another model."""
    return load_module(folder, RankerSpec, Ranker)


def _columns(
    spec: RankerSpec,
    *,
    single: Sequence[str],
    numeric: Sequence[str],
    pooled: dict[str, str],
    attended: Sequence[str] = (),
) -> Columns:
    field_of = {name: field for field, name in enumerate(spec.categorical_cardinalities)}
    return Columns(
        single={spec.single.index(name): field_of[name] for name in single},
        numeric=[spec.numeric.index(name) for name in numeric],
        pooled={name: field_of[field_name] for name, field_name in pooled.items()},
        attended=attended,
        target=spec.single.index(spec.attention_target) if attended else None,
    )


def trunk_columns(spec: RankerSpec) -> Columns:
    """Returns the columns that a body reads: all but those of the context."""
    return _columns(
        spec,
        single=[name for name in spec.single if name not in spec.context],
        numeric=[name for name in spec.numeric if name not in spec.context_numeric],
        pooled=spec.pooled,
        attended=spec.attention,
    )


def context_columns(spec: RankerSpec) -> Columns:
    """Returns the columns that only the context bias reads."""
    return _columns(spec, single=spec.context, numeric=spec.context_numeric, pooled={})


def all_columns(spec: RankerSpec) -> Columns:
    """Returns all columns, as the linear body reads them."""
    return _columns(spec, single=spec.single, numeric=spec.numeric, pooled=spec.pooled)


def linear_input_layer(spec: RankerSpec, columns: Columns) -> InputLayer:
    """Builds the layer that gives each id and each knot one weight a task."""
    numeric = NumericSize(bins=spec.bins, width=spec.heads, zero_bin=spec.zero_bin)
    return InputLayer(columns, numeric=numeric, embedding_width=spec.heads)


def input_layer(spec: RankerSpec, columns: Columns) -> InputLayer:
    """Builds the layer that turns columns into the vectors of a body or of the context."""
    return InputLayer(
        columns,
        numeric=numeric_size(spec),
        embedding_width=spec.embedding_width,
        groups=input_groups(spec.body, spec.heads, task_embeddings=spec.task_embeddings),
    )
