"""Training of a text model, and what it predicts.

Shapes: N texts, L tokens, V width of a text's vector, C classes of a task, T tasks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.text import NO_LABEL, TextClassifier, TextSpec, text_loss

SCORED_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class TextBudget:
    """What a fit may spend."""

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 0.005
    weight_decay: float = 0.01


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their classes."""

    ids_NL: Tensor
    """Token ids, int64, padded with 0 at the end."""
    labels_NT: Tensor
    """Classes, int64, -1 where a text has none."""

    def __len__(self) -> int:
        return len(self.ids_NL)


def fit_text(spec: TextSpec, training: LabelledTexts, validation: LabelledTexts, budget: TextBudget) -> TextClassifier:
    """Returns a model trained on all tasks of the spec together, as of its best epoch on the validation texts.

    Batches depend on the spec's seed and the number of texts alone: models of other tasks are trained on the same.
    The global random state is left alone.
    """
    assert len(training), "no text to train on"
    assert (validation.labels_NT != NO_LABEL).any(), "no label to tell epochs apart by"
    model = TextClassifier(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=budget.learning_rate, weight_decay=budget.weight_decay)
    order = torch.Generator().manual_seed(spec.seed)
    best, kept = float("inf"), model.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed)
        for _ in range(budget.epochs):
            _train_epoch(model, optimizer, training, torch.randperm(len(training), generator=order), budget.batch_size)
            loss = mean_loss(model, validation)
            if loss < best:
                best, kept = loss, {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval()


def _train_epoch(
    model: TextClassifier, optimizer: torch.optim.Optimizer, texts: LabelledTexts, order_N: Tensor, batch_size: int
) -> None:
    model.train()
    for rows in torch.split(order_N, batch_size):
        optimizer.zero_grad()
        text_loss(model(texts.ids_NL[rows]), texts.labels_NT[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def mean_loss(model: TextClassifier, texts: LabelledTexts) -> float:
    """Returns `text_loss` of all texts together, without dropout."""
    return float(text_loss(text_logits(model, texts.ids_NL), texts.labels_NT))


def text_logits(model: TextClassifier, ids_NL: Tensor) -> dict[str, Tensor]:
    """Returns each task's logits (N, C), without dropout or gradients."""
    model.eval()
    with torch.inference_mode():
        parts = [model(part) for part in torch.split(ids_NL, SCORED_AT_ONCE)]
    return {task: torch.cat([part[task] for part in parts]) for task in model.spec.classes}


def text_vectors(model: TextClassifier, ids_NL: Tensor) -> Tensor:
    """Returns the texts' vectors (N, V), without dropout or gradients."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model.vectors(part) for part in torch.split(ids_NL, SCORED_AT_ONCE)])
