"""The workload of bench_training.py, its contestants at equal sizes, and the process that each of them runs in.

Twenty categorical columns with 1.16 million ids, embeddings of 16; MMoE with 4 experts of [128, 64], or PLE with 2
levels of 2 shared and 2 x 2 specific ones; towers of [32]; click and click-and-conversion on all impressions. Ids of
the large columns are skewed: a batch of 4096 looks up 81,920 rows, 20 thousand of them different.

    python -m benchmarks.training_workload NAME BODY

reads one request a line from the standard input, `{"do": "train", "batch": 4096, "rows": 40960}`, and answers with the
seconds of its own CPU and of the clock, the rows and its peak memory so far. The floor is no model: it does the matrix
products of a step on tensors that lie ready, reads the rows, and writes them and their two moments back.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

CARDINALITIES = {
    f"c{n}": count for n, count in enumerate([1_000_000, 100_000, 30_000, 20_000, 5_000, *[200] * 14, 183])
}
WIDTH, HIDDEN, TOWER, TASKS, LEVELS = 16, (128, 64), (32,), 2, 2
SHARED_EXPERTS, SPECIFIC_EXPERTS = {"mmoe": 4, "ple": 2}, {"mmoe": 0, "ple": 2}
INPUT = len(CARDINALITIES) * WIDTH
ROWS = 65_536
RATE = 1e-3


@dataclass(frozen=True)
class Work:
    """What a contestant does with the first rows of the data: train on them, or predict them."""

    train: Callable[[int, int], None]
    """Batch size and rows."""
    predict: Callable[[int, int], None]


def data() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids (N, 20) from 1 on, and the labels (N, 2) of click and click-and-conversion."""
    generator = np.random.default_rng(0)
    ids = [
        1 + (generator.random(ROWS) ** (2 if count > 1_000 else 1) * (count - 1)).astype(np.int64)
        for count in CARDINALITIES.values()
    ]
    clicks = generator.random(ROWS) < 0.3
    both = clicks & (generator.random(ROWS) < 0.2)
    return np.stack(ids, axis=1), np.stack([clicks, both], axis=1).astype(np.float32)


def _ours(body: str, norm: str = "none") -> Work:
    from models.inputs import Features
    from models.losses import Propensity, Targets
    from models.optimizer import build_optimizers
    from models.ranker import Ranker, RankerSpec, predict
    from models.task_weights import StaticWeights
    from pipeline.objective import step_losses

    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as pipeline.train does
    ranker = Ranker(
        RankerSpec(
            body=body,
            categorical_cardinalities=CARDINALITIES,
            numeric=[],
            bins=16,
            pooled={},
            single=list(CARDINALITIES),
            context=[],
            context_numeric=[],
            embedding_width=WIDTH,
            hidden=HIDDEN,
            tower=TOWER,
            experts=SHARED_EXPERTS[body],
            task_experts=SPECIFIC_EXPERTS[body],
            levels=LEVELS,
            expert_norm=norm,
        )
    )
    optimizers = build_optimizers(ranker, learning_rate=RATE, embedding_learning_rate=RATE, weight_decay=1e-5)
    ids, labels = (torch.from_numpy(array) for array in data())
    clicks_B, ones_B = labels[:, 0].contiguous(), torch.ones(len(labels))
    features = Features(ids, torch.zeros(len(ids), 0))
    targets = Targets(clicks_B, labels[:, 1].contiguous(), ones_B, ones_B)
    balance, device = StaticWeights(), torch.device("cpu")
    weights, propensity = {"click": 1.0, "click_and_conversion": 1.0}, Propensity()

    def train(batch: int, rows: int) -> None:
        ranker.train()
        for chosen in torch.split(torch.randperm(rows), batch):
            optimizers.zero_grad()
            of_batch = features.slice(chosen).to(device), targets.select(chosen, device)
            float(balance.backward(*step_losses(ranker, propensity, of_batch, weights)))
            optimizers.step()

    return Work(train, lambda batch, rows: _ignore(predict(ranker, features.slice(slice(rows)), batch)))


def _deepctr(body: str) -> Work:
    """Return DeepCTR-Torch's own fit and predict; its fit compiles a loader over the rows each time."""
    from benchmarks.offline import keep_offline

    keep_offline()
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import MMOE, PLE

    columns = [SparseFeat(name, count, embedding_dim=WIDTH) for name, count in CARDINALITIES.items()]
    given: dict[str, Any] = {
        "expert_dnn_hidden_units": HIDDEN,
        "tower_dnn_hidden_units": TOWER,
        "gate_dnn_hidden_units": (),
    }
    if body == "mmoe":
        network = MMOE(columns, num_experts=SHARED_EXPERTS[body], **given)
    else:
        experts = {"shared_expert_num": SHARED_EXPERTS[body], "specific_expert_num": SPECIFIC_EXPERTS[body]}
        network = PLE(columns, num_levels=LEVELS, **experts, **given)
    network.compile("adam", loss=["binary_crossentropy"] * TASKS)
    ids, labels = data()

    def inputs(rows: int) -> dict[str, NDArray[np.int64]]:
        return {name: ids[:rows, n] for n, name in enumerate(CARDINALITIES)}

    def train(batch: int, rows: int) -> None:
        network.fit(inputs(rows), labels[:rows], batch_size=batch, epochs=1, verbose=0)

    return Work(train, lambda batch, rows: _ignore(network.predict(inputs(rows), batch)))


def _rechub(body: str) -> Work:
    """Return torch-rechub's own epoch and predict, over its own data sets."""
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import PredictDataset, TorchDataset

    columns = [SparseFeature(name, count, embed_dim=WIDTH) for name, count in CARDINALITIES.items()]
    types = ["classification"] * TASKS
    networks = {"expert_params": {"dims": list(HIDDEN)}, "tower_params_list": [{"dims": list(TOWER)}] * TASKS}
    if body == "mmoe":
        network = MMOE(columns, types, SHARED_EXPERTS[body], **networks)
    else:
        network = PLE(columns, types, LEVELS, SPECIFIC_EXPERTS[body], SHARED_EXPERTS[body], **networks)
    scratch = tempfile.TemporaryDirectory()
    trainer = MTLTrainer(network, types, n_epoch=1, model_path=scratch.name)
    ids, labels = data()

    def loader(dataset: Any, batch: int, *, shuffle: bool) -> Any:
        return torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=shuffle)

    def inputs(rows: int) -> dict[str, NDArray[np.int64]]:
        return {name: ids[:rows, n] for n, name in enumerate(CARDINALITIES)}

    def train(batch: int, rows: int) -> None:
        trainer.train_one_epoch(loader(TorchDataset(inputs(rows), labels[:rows]), batch, shuffle=True))

    def predict(batch: int, rows: int) -> None:
        _ignore(trainer.predict(network, loader(PredictDataset(inputs(rows)), batch, shuffle=False)), scratch)

    return Work(train, predict)


def _torchrec(body: str) -> Work:
    """Return TorchRec's fused tables with row-wise Adagrad below a plain MMoE or PLE, which it has none of."""
    from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad

    from benchmarks.plain_bodies import PlainMMoE, PlainPLE

    tables = FusedEmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=name, embedding_dim=WIDTH, num_embeddings=count, feature_names=[name])
            for name, count in CARDINALITIES.items()
        ],
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"lr": RATE},
    )
    network = (PlainMMoE if body == "mmoe" else PlainPLE)()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    ids, labels = (torch.from_numpy(array) for array in data())

    def logits(rows: torch.Tensor) -> torch.Tensor:
        given = KeyedJaggedTensor(
            keys=list(CARDINALITIES),
            values=ids[rows].t().flatten(),
            lengths=torch.ones(len(rows) * len(CARDINALITIES), dtype=torch.int64),
            stride=len(rows),
        )
        result: torch.Tensor = network(tables(given).values())
        return result

    def train(batch: int, rows: int) -> None:
        for chosen in torch.split(torch.randperm(rows), batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(chosen), labels[chosen])
            torch.autograd.backward(loss)
            loss.item()
            optimizer.step()

    def predict(batch: int, rows: int) -> None:
        with torch.no_grad():
            for chosen in torch.split(torch.arange(rows), batch):
                logits(chosen)

    return Work(train, predict)


def _floor(body: str) -> Work:
    from benchmarks.training_floor import Floor

    floor = Floor(body, torch.from_numpy(data()[0]))
    return Work(floor.train, floor.predict)


CONTESTANTS: dict[str, Callable[[str], Work]] = {
    "ours": _ours,
    "ours, BatchNorm": lambda body: _ours(body, "batch"),
    "deepctr-torch": _deepctr,
    "torch-rechub": _rechub,
    "torchrec": _torchrec,
    "floor": _floor,
}


def _ignore(*_: object) -> None:
    """Take what nobody reads."""


def _measured(work: Work, request: dict[str, Any]) -> dict[str, float]:
    action = work.train if request["do"] == "train" else work.predict
    cpu, clock = time.process_time(), time.perf_counter()
    action(request["batch"], request["rows"])
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - clock, "rows": request["rows"]}


def main(name: str, body: str) -> None:
    """Build a contestant, take a first step, and answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.suppress(BrokenPipeError):
        work = CONTESTANTS[name](body)
        work.train(4096, 4096)
        answer: dict[str, float] = {"cpu": time.process_time()}
        while True:
            answer["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            line = sys.stdin.readline()
            if not line:
                return
            answer = _measured(work, json.loads(line))


if __name__ == "__main__":
    main(*sys.argv[1:])
