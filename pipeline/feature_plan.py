"""From a configuration to the plan of its features, and the side tables that the plan reads."""

import polars as pl

from features.plan import CounterPlan, FeaturePlan, SidePlan
from pipeline import tables
from pipeline.config import Config
from pipeline.sections import SideTable
from pipeline.workspace import Workspace


def plan_of(config: Config) -> FeaturePlan:
    """Return the features that a configuration declares."""
    return FeaturePlan(
        users=_side_plan(config.users),
        items=_side_plan(config.items),
        context=tuple(config.context.references()),
        counters=tuple(
            CounterPlan(
                keys=tuple(counter.keys),
                half_lives_days=tuple(counter.half_lives_days),
                smoothing=counter.smoothing,
                recency=counter.recency,
            )
            for counter in config.features.counters
        ),
        sequence_length=config.features.sequence_length,
        item_age=config.features.item_age,
        time_zone=config.source.time_zone,
    )


def _side_plan(table: SideTable) -> SidePlan:
    return SidePlan(categorical=tuple(table.categorical), numeric=tuple(table.numeric), multi=tuple(table.multi))


def side_frame(workspace: Workspace, name: str, table: SideTable) -> pl.DataFrame | None:
    """Read tables/users or tables/items, or None where the configuration has none."""
    return tables.scan(workspace.table(name)).collect() if table.file is not None else None
