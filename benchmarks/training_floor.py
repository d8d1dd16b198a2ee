"""What a training step cannot do without, on tensors that lie ready: products, reads of rows, writes of rows.

Shapes: B batch, I input width, O output width, R different rows of a batch, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from benchmarks.training_workload import (
    CARDINALITIES,
    HIDDEN,
    INPUT,
    LEVELS,
    ROWS,
    SHARED_EXPERTS,
    SPECIFIC_EXPERTS,
    TASKS,
    TOWER,
    WIDTH,
)


def products(body: str) -> list[tuple[int, int, int]]:
    """Return the linear layers as (how many of equal inputs and outputs, I, O); the gates stand beside the experts."""
    own, shared = SPECIFIC_EXPERTS[body], SHARED_EXPERTS[body]
    experts, first, last = shared + TASKS * own, HIDDEN[0], HIDDEN[-1]
    seen = own + shared
    towers = [(TASKS, last, TOWER[0])]
    if body == "mmoe":
        return [(1, INPUT, experts * first + TASKS * experts), (experts, first, last), *towers]
    middle = [(experts, last, first), (experts, first, last), (TASKS, last, seen)] * (LEVELS - 1)
    return [(1, INPUT, experts * first + TASKS * seen + experts), (experts, first, last), *middle, *towers]


@dataclass(frozen=True)
class Product:
    """A linear layer's input, weight and output, and room for its gradients; the values do not matter."""

    times: int
    x_BI: Tensor
    weight_IO: Tensor
    y_BO: Tensor
    weight_gradient_IO: Tensor
    x_gradient_BI: Tensor

    def forward(self) -> None:
        """Multiply as the layer does."""
        for _ in range(self.times):
            torch.mm(self.x_BI, self.weight_IO, out=self.y_BO)

    def backward(self) -> None:
        """Multiply as its gradients ask for."""
        for _ in range(self.times):
            torch.mm(self.y_BO, self.weight_IO.t(), out=self.x_gradient_BI)
            torch.mm(self.x_BI.t(), self.y_BO, out=self.weight_gradient_IO)


class Floor:
    """Does a batch's indispensable work."""

    def __init__(self, body: str, ids: Tensor) -> None:
        self.body = body
        counts = torch.tensor(list(CARDINALITIES.values()))
        self.rows = ids + counts.cumsum(0) - counts
        self.tables = [torch.zeros(int(counts.sum()), WIDTH) for _ in range(3)]
        self.prepared: dict[int, tuple[list[Product], list[tuple[Tensor, Tensor, Tensor]]]] = {}

    def train(self, batch: int, rows: int) -> None:
        """Do what training on as many rows asks for."""
        layers, batches = self._prepare(batch)
        for number in range(rows // batch):
            order, starts, different_R = batches[number % len(batches)]
            self._read(batch, number)
            for layer in layers:
                layer.forward()
            for layer in layers:
                layer.backward()
            values = layers[0].x_gradient_BI.view(-1, WIDTH)
            embedding_bag(order, values, starts, mode="sum")
            for table in self.tables:
                table.index_copy_(0, different_R, _gather(table, different_R))

    def predict(self, batch: int, rows: int) -> None:
        """Do what predicting as many rows asks for."""
        layers, _ = self._prepare(batch)
        for number in range(rows // batch):
            self._read(batch, number)
            for layer in layers:
                layer.forward()

    def _read(self, batch: int, number: int) -> None:
        start = number * batch % (ROWS - batch + 1)
        _gather(self.tables[0], self.rows[start : start + batch].flatten())

    def _prepare(self, batch: int) -> tuple[list[Product], list[tuple[Tensor, Tensor, Tensor]]]:
        if batch not in self.prepared:
            layers = [_product(times, batch, i, o) for times, i, o in products(self.body)]
            parts = torch.split(self.rows, batch)[:8]
            self.prepared[batch] = layers, [_sorted(part.flatten()) for part in parts if len(part) == batch]
        return self.prepared[batch]


def _product(times: int, batch: int, inputs: int, outputs: int) -> Product:
    shapes = (batch, inputs), (inputs, outputs), (batch, outputs), (inputs, outputs), (batch, inputs)
    return Product(times, *(torch.randn(shape) for shape in shapes))


def _sorted(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an order that puts equal rows side by side, where each row begins in it, and the different rows."""
    order = rows.argsort(stable=True)
    different_R, counts = rows[order].unique_consecutive(return_counts=True)
    return order, counts.cumsum(0) - counts, different_R


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    return embedding_bag(rows, table, torch.arange(len(rows)), mode="sum")
