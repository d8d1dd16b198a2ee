"""The workload of bench_ranking.py, its contestants, and the process that each of them runs in.

200 candidates a user among 100,000 items. `mmoe` has the sizes of training_workload.py: 20 categorical columns, 10 of
the user and 10 of the item, embeddings of 16, MMoE with 4 experts of [128, 64], towers of [32]. `kuairand` has the body
of examples/kuairand.toml: one level of PLE with 1 shared and 2 specific experts of [64, 32], embeddings of each task,
and the head that the conversion loss `dcmt` adds in training. Both read four numbers of a user and an item's category
together: a user has met 10 of the 40 categories, and what has not been met has the same four numbers for all. `worst`
is `mmoe` where every pair has four numbers of its own.

    python -m benchmarks.ranking_workload NAME SIZES

reads one request a line from the standard input, `{"users": 64}`, and answers with the seconds of its own CPU. The
floor is no model: it does the matrix products that are left of a pair on tensors that lie ready, and adds up two rows
a pair. The peers get the same pairs as whole rows, made before the clock starts; ours, naive makes them itself.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.training_workload import CARDINALITIES, TASKS, WIDTH
from models.inputs import Features
from models.part_table import BLOCK_PAIRS, NONE, PartTable
from models.ranker import Ranker, RankerSpec, predict
from models.split_ranker import SplitRanker

ITEMS, CANDIDATES, CATEGORIES, MET, BINS = 100_000, 200, 40, 10, 16
USERS = 512
SLICE_USERS = 64
OF_USER = ["c0", "c3", *(f"c{n}" for n in range(5, 13))]
OF_ITEM = [name for name in CARDINALITIES if name not in OF_USER]
NUMBERS = [f"n{n}" for n in range(4)]
NUMERIC_WIDTH = 8
BODIES: dict[str, dict[str, Any]] = {
    "mmoe": {"body": "mmoe", "hidden": (128, 64), "experts": 4},
    "kuairand": {
        "body": "ple",
        "hidden": (64, 32),
        "experts": 1,
        "task_experts": 2,
        "levels": 1,
        "task_embeddings": True,
        "conversion_loss": "dcmt",
    },
}
BODIES["worst"] = BODIES["mmoe"]
Score = Callable[[int, int], NDArray[np.float32]]
"""From the first user and the user behind the last to their pairs' outputs."""


class Data:
    """Users, items, who is to be scored with what, and the numbers of pairs."""

    def __init__(self, sizes: str) -> None:
        generator = np.random.default_rng(0)

        def ids(names: list[str], count: int) -> NDArray[np.int64]:
            return np.stack([1 + generator.integers(0, CARDINALITIES[name] - 1, count) for name in names], axis=1)

        self.users, self.items = ids(OF_USER, USERS), ids(OF_ITEM, ITEMS)
        self.candidates = np.stack([generator.choice(ITEMS, CANDIDATES, replace=False) for _ in range(USERS)])
        category_I = generator.integers(0, CATEGORIES, ITEMS)
        met_UC = np.stack([generator.permutation(CATEGORIES) < MET for _ in range(USERS)])
        number_UC = np.where(met_UC, met_UC.cumsum().reshape(met_UC.shape), 0)
        self.number_UK = number_UC[np.arange(USERS)[:, None], category_I[self.candidates]]
        if sizes == "worst":
            self.number_UK = 1 + np.arange(USERS * CANDIDATES).reshape(USERS, CANDIDATES)
        count = int(self.number_UK.max()) + 1
        self.numbers = (generator.random((count, len(NUMBERS))) * BINS).astype(np.float32)

    def pairs(self, start: int, stop: int) -> Features:
        """Gather the whole rows of all pairs of some users."""
        user_N = np.repeat(np.arange(start, stop), CANDIDATES)
        item_N = self.candidates[start:stop].ravel()
        ids = np.empty((len(user_N), len(CARDINALITIES)), dtype=np.int64)
        places = {name: place for place, name in enumerate(CARDINALITIES)}
        ids[:, [places[name] for name in OF_USER]] = self.users[user_N]
        ids[:, [places[name] for name in OF_ITEM]] = self.items[item_N]
        positions = self.numbers[self.number_UK[start:stop].ravel()]
        return Features(torch.from_numpy(ids), torch.from_numpy(positions))


def _ranker(sizes: str) -> Ranker:
    return Ranker(
        RankerSpec(
            categorical_cardinalities=CARDINALITIES,
            numeric=NUMBERS,
            bins=BINS,
            pooled={},
            single=list(CARDINALITIES),
            context=[],
            context_numeric=[],
            embedding_width=WIDTH,
            numeric_width=NUMERIC_WIDTH,
            tower=(32,),
            **BODIES[sizes],
        )
    )


def ours(sizes: str) -> Score:
    """Score by parts, as `pipeline.pair_scorer.PairScorer` does."""
    data, split = Data(sizes), SplitRanker(_ranker(sizes))
    user_part, item_part, pair_part = (split.part(set(names)) for names in (OF_USER, OF_ITEM, NUMBERS))
    table = PartTable(split, rows=ITEMS + SLICE_USERS * (1 + CANDIDATES))
    for start in range(0, ITEMS, 8192):
        table.fill(start, item_part(_ids(data.items[start : start + 8192])))
    unseen_W = pair_part(_numbers(data.numbers[:1]))[0]
    constant_W = split.constant_W + unseen_W

    def score(start: int, stop: int) -> NDArray[np.float32]:
        parts = [of_slice(begin, min(begin + SLICE_USERS, stop)) for begin in range(start, stop, SLICE_USERS)]
        return np.concatenate(parts)

    def of_slice(start: int, stop: int) -> NDArray[np.float32]:
        filled = table.fill(ITEMS, user_part(_ids(data.users[start:stop])) + constant_W)
        numbers = data.number_UK[start:stop].ravel()
        met = numbers != 0
        wanted, places = np.unique(numbers[met], return_inverse=True)
        table.fill(filled, pair_part(_numbers(data.numbers[wanted])) - unseen_W)
        number_rows = np.full(len(numbers), NONE)
        number_rows[met] = places + filled
        user_rows = ITEMS + np.repeat(np.arange(stop - start), CANDIDATES)
        return table.outputs(np.stack([data.candidates[start:stop].ravel(), user_rows, number_rows], axis=1))

    return score


def naive(sizes: str) -> Score:
    """Score whole rows by `predict`, at its best batch size."""
    data, ranker = Data(sizes), _ranker(sizes)
    return lambda start, stop: predict(ranker, data.pairs(start, stop), BLOCK_PAIRS)


def _rechub_mmoe() -> Any:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE

    columns = [SparseFeature(name, count, embed_dim=WIDTH) for name, count in CARDINALITIES.items()]
    columns += [DenseFeature(name) for name in NUMBERS]
    return MMOE(columns, ["classification"] * TASKS, 4, {"dims": [128, 64]}, [{"dims": [32]}] * TASKS).eval()


def rechub(sizes: str) -> Score:
    """Score whole rows by the `predict` of torch-rechub's trainer, over its own data set."""
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import PredictDataset

    network = _rechub_mmoe()
    scratch = tempfile.TemporaryDirectory()
    trainer = MTLTrainer(network, ["classification"] * TASKS, n_epoch=1, model_path=scratch.name)

    def score(columns: dict[str, NDArray[Any]], batch: int) -> NDArray[np.float32]:
        loader = torch.utils.data.DataLoader(PredictDataset(columns), batch_size=batch, shuffle=False)
        return np.asarray(trainer.predict(network, loader), dtype=np.float32)

    return _of_whole_rows(sizes, score)


def rechub_network(sizes: str) -> Score:
    """Score whole rows by torch-rechub's MMOE itself, without its data set and loader."""
    network = _rechub_mmoe()

    def score(columns: dict[str, NDArray[Any]], batch: int) -> NDArray[np.float32]:
        tensors = {name: torch.from_numpy(array) for name, array in columns.items()}
        count = len(next(iter(tensors.values())))
        with torch.inference_mode():
            parts = [
                network({name: tensor[start : start + batch] for name, tensor in tensors.items()}).numpy()
                for start in range(0, count, batch)
            ]
        return np.concatenate(parts)

    return _of_whole_rows(sizes, score)


def deepctr(sizes: str) -> Score:
    """Score whole rows by the `predict` of DeepCTR-Torch's MMOE."""
    from benchmarks.offline import keep_offline

    keep_offline()
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import MMOE

    columns = [SparseFeat(name, count, embedding_dim=WIDTH) for name, count in CARDINALITIES.items()]
    columns += [DenseFeat(name) for name in NUMBERS]
    network = MMOE(
        columns,
        num_experts=4,
        expert_dnn_hidden_units=(128, 64),
        tower_dnn_hidden_units=(32,),
        gate_dnn_hidden_units=(),
    )
    return _of_whole_rows(sizes, network.predict)


def floor(sizes: str) -> Score:
    """Do the products that are left of a pair, and add up an item's and a user's row."""
    data, split = Data(sizes), SplitRanker(_ranker(sizes))
    shapes = {"mmoe": [(4, 128, 64), (2, 64, 32)], "kuairand": [(5, 64, 32), (2, 32, 32)]}
    shapes["worst"] = [(1, len(NUMBERS) * NUMERIC_WIDTH, split.width), *shapes["mmoe"]]
    products = [
        (times, torch.randn(BLOCK_PAIRS, inputs), torch.randn(inputs, outputs), torch.empty(BLOCK_PAIRS, outputs))
        for times, inputs, outputs in [*shapes[sizes], (TASKS, 32, 1)]
    ]
    table = torch.randn(ITEMS + USERS, split.width)

    def score(start: int, stop: int) -> NDArray[np.float32]:
        users = ITEMS + np.repeat(np.arange(start, stop), CANDIDATES)
        rows = torch.from_numpy(np.stack([data.candidates[start:stop].ravel(), users], axis=1))
        for block in torch.split(rows, BLOCK_PAIRS):
            torch.nn.functional.embedding_bag(block, table, mode="sum")
            for times, x, weight, y in products:
                for _ in range(times):
                    torch.mm(x[: len(block)], weight, out=y[: len(block)])
        return np.zeros(0, dtype=np.float32)

    return score


CONTESTANTS: dict[str, Callable[[str], Score]] = {
    "ours": ours,
    "ours, naive": naive,
    "torch-rechub": rechub,
    "torch-rechub, network alone": rechub_network,
    "deepctr-torch": deepctr,
    "floor": floor,
}


def _of_whole_rows(sizes: str, score: Callable[[dict[str, NDArray[Any]], int], NDArray[np.float32]]) -> Score:
    """Find a peer's best batch size, and give it whole rows that lie ready."""
    data = Data(sizes)
    features = data.pairs(0, USERS)
    columns: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(features.ids_BF[:, n].numpy()) for n, name in enumerate(CARDINALITIES)
    }
    columns |= {name: features.positions_BF[:, n].numpy() / BINS for n, name in enumerate(NUMBERS)}

    def rows(start: int, stop: int) -> dict[str, NDArray[Any]]:
        return {name: array[start * CANDIDATES : stop * CANDIDATES] for name, array in columns.items()}

    def seconds(batch: int) -> float:
        score(rows(0, 8), batch)
        began = time.process_time()
        score(rows(0, 84), batch)
        return time.process_time() - began

    best = min((512, 1024, 2048, 4096, 16_384), key=seconds)
    return lambda start, stop: score(rows(start, stop), best)


def _ids(ids: NDArray[np.int64]) -> Features:
    return Features(torch.from_numpy(ids), torch.zeros(len(ids), 0))


def _numbers(positions: NDArray[np.float32]) -> Features:
    return Features(torch.zeros(len(positions), 0, dtype=torch.int64), torch.from_numpy(positions))


def main(name: str, sizes: str) -> None:
    """Build a contestant, score once, and answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.suppress(BrokenPipeError):
        began = time.process_time()
        score = CONTESTANTS[name](sizes)
        score(0, SLICE_USERS)
        answer = {"cpu": time.process_time() - began}
        while True:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            line = sys.stdin.readline()
            if not line:
                return
            users, began = json.loads(line)["users"], time.process_time()
            score(0, users)
            answer = {"cpu": time.process_time() - began}


if __name__ == "__main__":
    main(*sys.argv[1:])
