"""A text encoder that several classifiers share: embeddings of words, their mean, one vector, a head a task.

Shapes: N texts, L tokens, D width of a token, V width of a text's vector, C classes of a task, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.serialization import load_module, save_module

PADDING = 0
NO_LABEL = -1
LEAST_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """All that determines a text model's architecture and its initial weights."""

    cardinality: int
    """Number of token ids, padding included."""
    classes: dict[str, int]
    """Number of classes of each task, in order."""
    token_width: int = 32
    vector_width: int = 16
    dropout: float = 0.2
    """Probability that a token, and a number of the vector, is left out in training."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)


class TextClassifier(nn.Module):
    """Classifies a text by every task, from one vector that all tasks train; with one task, a single-task classifier.

    The vector is tanh of a linear map of the mean of the tokens' embeddings (Joulin et al. 2017). Convolutions, a GRU
    and a transformer in the mean's place were not better (docs/decisions/0005). Equal specs give equal weights; the
    global random state is left alone.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self.table = nn.Embedding(spec.cardinality, spec.token_width, padding_idx=PADDING)
            nn.init.normal_(self.table.weight, std=0.1)
            with torch.no_grad():
                self.table.weight[PADDING].zero_()
            self.output = nn.Linear(spec.token_width, spec.vector_width)
            self.heads = nn.ModuleList([nn.Linear(spec.vector_width, count) for count in spec.classes.values()])
        self.dropout = nn.Dropout(spec.dropout)

    def vectors(self, ids_NL: Tensor) -> Tensor:
        """Returns the texts' vectors (N, V) float32, each number in -1..1, from token ids (N, L) int64.

        Ids are padded with 0, which leaves a vector as it is but for rounding. A text of padding alone has the mean 0.
        """
        is_token_NL = ids_NL != PADDING
        share_NL = is_token_NL / is_token_NL.sum(1, keepdim=True).clamp(min=1)
        mean_ND = torch.bmm(self.dropout(share_NL).unsqueeze(1), self.table(ids_NL)).squeeze(1)
        vectors_NV: Tensor = self.output(mean_ND).tanh()
        return vectors_NV

    def forward(self, ids_NL: Tensor) -> dict[str, Tensor]:
        """Returns each task's logits (N, C) of token ids (N, L)."""
        vectors_NV = self.dropout(self.vectors(ids_NL))
        return {task: head(vectors_NV) for task, head in zip(self.spec.classes, self.heads, strict=True)}


def text_loss(logits: Mapping[str, Tensor], labels_NT: Tensor) -> Tensor:
    """Sums over tasks the mean cross-entropy of the texts that have a label; a task without any adds 0.

    `labels_NT` int64 holds classes in the order of `logits`, -1 where a text has no label.
    """
    losses = []
    for column, logits_NC in enumerate(logits.values()):
        labels_N = labels_NT[:, column]
        total = nn.functional.cross_entropy(logits_NC, labels_N, ignore_index=NO_LABEL, reduction="sum")
        losses.append(total / (labels_N != NO_LABEL).sum().clamp(min=1))
    return torch.stack(losses).sum()


def save_text(model: TextClassifier, folder: Path) -> None:
    """Writes the weights (safetensors) and the spec (JSON) into a folder."""
    save_module(model, model.spec, folder)


def load_text(folder: Path) -> TextClassifier:
    """Reads a saved model onto the CPU; ValueError when a file is missing, damaged or another model's."""
    return load_module(folder, TextSpec, TextClassifier).eval()


def _check(spec: TextSpec) -> None:
    if not spec.classes:
        raise ValueError("classes names no task, expected at least one with its number of classes")
    if small := [task for task, count in spec.classes.items() if count < LEAST_CLASSES]:
        raise ValueError(f"tasks {small} have fewer than {LEAST_CLASSES} classes: leave out what tells nothing apart")
