"""Which weights which optimiser steps, and how."""

import torch
from torch import nn

from models.embedding import FusedEmbedding
from models.layers import BatchNorm, GroupedLinear
from models.optimizer import build_optimizers


class Model(nn.Module):
    """A table and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FusedEmbedding(cardinalities=[6], width=2)
        self.layer = GroupedLinear(groups=1, input_width=2, output_width=1)


def test_every_weight_has_one_optimiser_and_tables_have_the_sparse_one() -> None:
    model = Model()
    optimizers = build_optimizers(model, learning_rate=0.1, embedding_learning_rate=0.2, weight_decay=0.3)
    (tables,) = optimizers.sparse.param_groups
    weights, biases = optimizers.dense.param_groups
    assert [id(weight) for weight in tables["params"]] == [id(model.table.table.weight)]
    assert [id(weight) for weight in weights["params"]] == [id(model.layer.weight_GIO)]
    assert [id(weight) for weight in biases["params"]] == [id(model.layer.bias_GO)]
    assert (tables["lr"], weights["lr"], biases["lr"]) == (0.2, 0.1, 0.1)
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.3, 0.0)


def test_the_first_step_moves_each_weight_by_its_own_rate() -> None:
    # Adam's first step is the learning rate times the gradient's sign.
    model = Model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizers = build_optimizers(model, learning_rate=0.1, embedding_learning_rate=0.2, weight_decay=0.0)
    optimizers.zero_grad()
    torch.autograd.backward(model.table(torch.tensor([[4]])).sum() - model.layer(torch.ones(1, 2)).sum())
    optimizers.step()
    moved = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    torch.testing.assert_close(moved["table.table.weight"][4], torch.full((2,), -0.2))
    torch.testing.assert_close(moved["layer.weight_GIO"], torch.full((1, 2, 1), 0.1))


def test_zero_grad_forgets_the_gradients() -> None:
    model = Model()
    optimizers = build_optimizers(model, learning_rate=0.1, embedding_learning_rate=0.1, weight_decay=0.0)
    torch.autograd.backward(model.table(torch.tensor([[4]])).sum() + model.layer(torch.ones(1, 2)).sum())
    optimizers.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())


def test_the_scale_of_a_norm_does_not_decay() -> None:
    model = nn.ModuleDict({"model": Model(), "norm": BatchNorm(groups=1, width=2)})
    optimizers = build_optimizers(model, learning_rate=0.1, embedding_learning_rate=0.1, weight_decay=0.3)
    free = {
        id(weight) for group in optimizers.dense.param_groups if not group["weight_decay"] for weight in group["params"]
    }
    assert {id(weight) for weight in model["norm"].parameters()} <= free
