"""Days that training streams from the table instead of holding them."""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
import torch

from models.retriever import Retriever
from models.serialization import weights_digest
from pipeline import tables
from pipeline.blocks import StoredDay, identity, stored_day
from pipeline.config import Config
from pipeline.dataset import Block, Examples, read_examples, retriever_spec
from pipeline.fit import fit_of, fit_ranker
from pipeline.fit_retriever import POOL_ROWS, fit_retriever, plan_pools
from pipeline.label_sums import LabelSums
from pipeline.maturity import Maturity, maturity_of
from pipeline.study_data import Study
from pipeline.workspace import Workspace

COPIES = 350


def _maturity(study: Study, table: Path) -> Maturity:
    found = maturity_of(study.config, tables.scan(table), study.plan.start_of(study.days.test[0]))
    weighed = "propensity" in tables.scan(table).collect_schema().names()
    return replace(found, propensity_clip=4.0) if weighed else found


def _pair(study: Study, table: Path, day: dt.date) -> tuple[StoredDay, Examples]:
    spec, maturity = study.spec("linear", 1), _maturity(study, table)
    version = tables.version(table)
    return stored_day(table, version, day, spec, maturity), read_examples(table, version, day, spec, maturity)


@pytest.fixture(scope="module")
def long_day(study_workspace: Workspace, small_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table whose only day has more rows than a row group, as featurize orders them, with propensities."""
    day = small_study.days.train[-1]
    rows = tables.scan(study_workspace.table("examples")).filter(pl.col("date") == day).collect()
    apart = [pl.col("event_time") + pl.duration(milliseconds=copy) for copy in range(COPIES)]
    copies = pl.concat([rows.with_columns(event_time=time) for time in apart]).sort("event_time", maintain_order=True)
    copies = copies.with_columns(propensity=1.0 / (1 + pl.int_range(pl.len()) % 7))
    table = tmp_path_factory.mktemp("long") / "examples"
    tables.write_days(table, [copies], [day], note={})
    return table


def _read(day: StoredDay | Examples) -> Iterator[Examples]:
    return (block.read() for block in day.blocks())


def test_a_stored_day_gives_what_a_day_in_memory_gives(study_workspace: Workspace, small_study: Study) -> None:
    stored, held = _pair(small_study, study_workspace.table("examples"), small_study.days.train[0])
    (block,) = _read(stored)
    assert torch.equal(block.features.ids_BF, held.features.ids_BF)
    assert torch.equal(block.features.positions_BF, held.features.positions_BF)
    assert all(torch.equal(block.features.pooled[name], held.features.pooled[name]) for name in held.features.pooled)
    assert torch.equal(block.clicks, held.clicks)
    assert torch.equal(block.supervision.targets.conversions_B, held.supervision.targets.conversions_B)
    assert torch.equal(block.supervision.targets.conversion_mask_B, held.supervision.targets.conversion_mask_B)
    assert stored.label_sums() == held.label_sums()
    assert stored.item_clicks().sort("item_id").equals(held.item_clicks().sort("item_id"))
    assert [(one.rows, one.clicked_rows) for one in stored.blocks()] == [(400, int(held.clicks.sum()))]


def test_a_long_day_comes_in_row_groups_from_the_table_and_from_memory(long_day: Path, small_study: Study) -> None:
    stored, held = _pair(small_study, long_day, small_study.days.train[-1])
    rows = 400 * COPIES
    expected = [tables.ROW_GROUP_ROWS, rows - tables.ROW_GROUP_ROWS]
    assert [block.rows for block in stored.blocks()] == [block.rows for block in held.blocks()] == expected
    assert stored.label_sums() == held.label_sums()
    assert stored.label_sums().tasks["click"].rows <= rows
    for ours, theirs in zip(_read(stored), _read(held), strict=True):
        assert torch.equal(ours.features.ids_BF, theirs.features.ids_BF)
        assert torch.equal(ours.supervision.targets.conversion_mask_B, theirs.supervision.targets.conversion_mask_B)
        assert len(ours.supervision.targets.click_mask_B.unique()) > 3


def test_a_ranker_fitted_from_the_table_is_the_one_fitted_from_memory(long_day: Path, small_study: Study) -> None:
    day = small_study.days.train[-1]
    spec, fit = small_study.spec("linear", 1), replace(fit_of(small_study.config), batch_size=8192)
    trained = [fit_ranker(spec, fit, [days], [days]) for days in _pair(small_study, long_day, day)]
    assert weights_digest(trained[0][0]) == weights_digest(trained[1][0])
    assert trained[0][1] == trained[1][1]


def test_a_write_gives_a_day_another_identity(study_workspace: Workspace, small_study: Study, tmp_path: Path) -> None:
    day, spec = small_study.days.train[0], small_study.spec("linear", 1)
    rows = tables.scan(study_workspace.table("examples")).filter(pl.col("date") == day).collect()
    found = []
    for _ in range(2):
        tables.write_days(tmp_path / "examples", [rows], [day], note={})
        version = tables.version(tmp_path / "examples")
        found += [stored_day(tmp_path / "examples", version, day, spec, None) for _ in range(2)]
    assert identity(found[:1]) == identity(found[1:2]) != identity(found[2:3])
    assert [block.read().clicks.sum() for one in found for block in one.blocks()] == [rows["click"].sum()] * 4


def test_clicked_rows_of_all_days_are_one_pool_in_time_or_pools_of_shuffled_blocks(
    long_day: Path, small_study: Study
) -> None:
    stored, held = _pair(small_study, long_day, small_study.days.train[-1])
    generator = torch.Generator().manual_seed(0)
    assert [block.rows for block in plan_pools([held], generator)[0]] == [block.rows for block in stored.blocks()]
    clicked = held.label_sums().clicked_rows
    copies = 3 * POOL_ROWS // clicked + 1
    pools = plan_pools([held] * copies, generator)
    assert sum(block.clicked_rows for pool in pools for block in pool) == copies * clicked
    assert all(sum(block.clicked_rows for block in pool[:-1]) < POOL_ROWS for pool in pools)
    assert all(sum(block.clicked_rows for block in pool) >= POOL_ROWS for pool in pools[:-1])
    assert [block.rows for pool in pools for block in pool] != [block.rows for block in held.blocks()] * copies


@dataclass(frozen=True)
class Blocks:
    """A day of given blocks."""

    held: list[Block]

    def blocks(self) -> list[Block]:
        """Return the blocks."""
        return self.held

    def label_sums(self) -> LabelSums:
        """Return none."""
        return LabelSums()

    def item_clicks(self) -> pl.DataFrame:
        """Return none."""
        return pl.DataFrame()


def test_no_pool_is_without_a_click(small_study: Study) -> None:
    part = small_study.training[0]
    full, empty = Block(tables.ROW_GROUP_ROWS, POOL_ROWS, lambda: part), Block(3, 0, lambda: part)
    for seed in range(20):
        pools = plan_pools([Blocks([full, empty])] * 4, torch.Generator().manual_seed(seed))
        assert pools == [[full]] * 4
    assert plan_pools([Blocks([full, empty])], torch.Generator()) == [[full]]


def test_a_retriever_that_diverges_is_refused_with_what_to_do(small_study: Study) -> None:
    towers = retriever_spec(small_study.config, small_study.plan, small_study.encoder, 1)
    columns, days = small_study.spec("linear", 1), small_study.training

    def fitted(begin: Callable[[Retriever], None] | None = None, **settings: float) -> None:
        changed = small_study.config.retriever.model_copy(update={"epochs": 1, "batch_size": 16, **settings})
        fit_retriever(small_study.config.model_copy(update={"retriever": changed}), towers, columns, days, begin)

    expected = "retriever diverged in epoch 1: .* lower retriever.learning_rate and retriever.embedding_learning_rate"
    with pytest.raises(ValueError, match=expected):
        fitted(learning_rate=1e38)
    with pytest.raises(ValueError, match=expected):
        fitted(_spoil_a_row_that_no_example_reads)


def _spoil_a_row_that_no_example_reads(retriever: Retriever) -> None:
    """Make the first field's code for unseen ids no number: the loss stays one."""
    with torch.no_grad():
        retriever.table.table.weight[2] = torch.nan


def test_a_retriever_learns_the_same_from_the_table_and_from_memory(
    simulated_config: Config, study_workspace: Workspace, small_study: Study
) -> None:
    table = study_workspace.table("examples")
    pairs = [_pair(small_study, table, day) for day in small_study.days.train]
    settings = simulated_config.retriever.model_copy(update={"epochs": 2, "batch_size": 64})
    config = simulated_config.model_copy(update={"retriever": settings})
    towers = retriever_spec(config, small_study.plan, small_study.encoder, 1)
    columns = small_study.spec("linear", 1)
    stored, losses = fit_retriever(config, towers, columns, [pair[0] for pair in pairs])
    held, held_losses = fit_retriever(config, towers, columns, [pair[1] for pair in pairs])
    assert losses == held_losses
    assert losses[1] < losses[0]
    assert weights_digest(stored) == weights_digest(held)
