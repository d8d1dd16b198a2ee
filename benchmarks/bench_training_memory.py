"""Peak memory of training on N and on 10 N rows, which the target says is nearly the same.

    python -m benchmarks.bench_training_memory

Days of made-up examples are written through pipeline/tables.py; then a ranker and a retriever are fitted on them as
`train` does, in a process of its own for each size. Models, ids and number of days are equal: only the rows of a day
differ, 150 thousand against 1.5 million.
"""

import datetime as dt
import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
import typer

from benchmarks.figures import Figure, show
from models.losses import Propensity
from models.ranker import RankerSpec
from models.retriever import RetrieverSpec
from models.task_weights import Balancing
from pipeline import tables, threads
from pipeline.blocks import StoredDay, stored_day
from pipeline.config import Config
from pipeline.fit import Fit, fit_ranker
from pipeline.fit_retriever import fit_retriever
from pipeline.stage import Outcome, measure

FIRST = dt.date(2026, 1, 1)
DAYS = 2
IDS = 100_000
SINGLE = ["user_id", "item_id", *(f"category_{number}" for number in range(8))]
NUMERIC = [f"number_{number}" for number in range(12)]
BINS, LIST_LENGTH = 32, 10
TARGET = 1.2


def write_days(folder: Path, rows_a_day: int) -> None:
    """Write the days of made-up examples."""
    days = [FIRST + dt.timedelta(days=number) for number in range(DAYS)]
    tables.write_days(folder, (_day(day, rows_a_day) for day in days), days, note={})


def _day(day: dt.date, rows: int) -> pl.DataFrame:
    random = np.random.default_rng(day.toordinal())
    codes = {f"{name}_code": random.integers(3, IDS if name.endswith("_id") else 100, rows) for name in SINGLE}
    positions = {f"{name}_position": random.random(rows, np.float32) * BINS for name in NUMERIC}
    history = random.integers(0, IDS, (rows, LIST_LENGTH), np.int32)
    midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
    frame = pl.DataFrame(
        {
            **{name: values.astype(np.int32) for name, values in codes.items()},
            **positions,
            "history_code": pl.Series(history, dtype=pl.Array(pl.Int32, LIST_LENGTH)).cast(pl.List(pl.Int32)),
            "click": random.random(rows) < 0.1,
            "conversion": random.random(rows) < 0.02,
            "event_time": np.sort(random.integers(0, 86_400_000_000, rows)),
        }
    )
    time = pl.lit(midnight).dt.cast_time_unit("us") + pl.duration(microseconds="event_time")
    return frame.with_columns(
        pl.col("item_id_code").cast(pl.String).alias("item_id"),
        pl.col("conversion") & pl.col("click"),
        time.alias("event_time"),
        *(time.alias(name) for name in ("received_time", "click_known_at", "conversion_known_at", "label_matures_at")),
        pl.lit(day).alias("date"),
    )


def specs() -> tuple[RankerSpec, RetrieverSpec]:
    """Return a small MMoE and two small towers, whose tables are the larger part."""
    cardinalities = {name: IDS if name.endswith("_id") else 100 for name in SINGLE}
    shared: dict[str, Any] = {"categorical_cardinalities": cardinalities, "bins": BINS, "hidden": (32, 16)}
    ranker = RankerSpec(
        body="mmoe",
        numeric=NUMERIC,
        pooled={"history": "item_id"},
        single=SINGLE,
        context=[],
        context_numeric=[],
        **shared,
    )
    retriever = RetrieverSpec(
        user_single=["user_id", *SINGLE[2:6]],
        item_single=["item_id", *SINGLE[6:]],
        user_numeric=NUMERIC[:6],
        item_numeric=NUMERIC[6:],
        user_pooled={"history": "item_id"},
        item_pooled={},
        **shared,
    )
    return ranker, retriever


def fit_once(folder: Path) -> Outcome:
    """Fit a ranker and a retriever on the days, the last of which validates too."""
    threads.configure()
    torch.set_num_threads(1)
    ranker, retriever = specs()
    days = [stored_day(folder, 0, FIRST + dt.timedelta(days=number), ranker, None) for number in range(DAYS)]
    fit_ranker(ranker, _fit(), days, days[-1:])
    values = {"name": "made up", "source": {"interactions": "none"}, "retriever": {"epochs": 1}}
    fit_retriever(Config.model_validate(values), retriever, ranker, days)
    return Outcome(_rows(days), 0)


def _rows(days: list[StoredDay]) -> int:
    return sum(block.rows for day in days for block in day.blocks())


def _fit() -> Fit:
    return Fit(
        epochs=1,
        batch_size=8192,
        learning_rate=1e-3,
        embedding_learning_rate=1e-3,
        weight_decay=0.0,
        conversion_weight=1.0,
        extra_weights={},
        debiasing_weight=1.0,
        counterfactual_prior_weight=0.0,
        propensity=Propensity(),
        balancing=Balancing(),
        seed=1,
        device=torch.device("cpu"),
    )


def _write(answer: Connection, folder: Path, rows: int) -> None:
    write_days(folder, rows)
    answer.send(0.0)


def _measure(answer: Connection, folder: Path, rows: int) -> None:
    del rows
    answer.send(measure("train", lambda: fit_once(folder)).peak_mib)


def _in_a_process(work: Callable[[Connection, Path, int], None], folder: Path, rows: int) -> float:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, folder, rows))
    process.start()
    sender.close()
    found = float(receiver.recv())
    process.join()
    return found


def main(
    rows: Annotated[int, typer.Option(min=1000, help="N: rows of a day at the smaller size.")] = 150_000,
    times: Annotated[int, typer.Option(min=2)] = 10,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")] = None,
) -> None:
    """Measure both sizes, and print the peaks and their ratio."""
    peaks = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in (rows, times * rows):
            folder = Path(scratch) / str(size)
            _in_a_process(_write, folder, size)
            peaks[size] = _in_a_process(_measure, folder, size)
    small, large = peaks.values()
    told = f"{small:.0f} MiB at {DAYS} x {rows:,} rows"
    figures = [
        Figure(what=f"training: peak MiB at {DAYS} x {times * rows:,} rows", value=large, peer=told),
        Figure(what=f"training: peak at {times} N rows over that at N", value=large / small, peer=told, at_most=TARGET),
    ]
    show("Memory of training by number of rows", figures, output)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
