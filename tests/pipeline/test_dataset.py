"""A training label counts only where it was known before the cutoff."""

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl

from features.encoding import load_encoder
from pipeline import tables
from pipeline.config import Config
from pipeline.dataset import ranker_spec, read_examples
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.ingest import ingest
from pipeline.maturity import Maturity
from pipeline.workspace import Workspace


def _before(cutoff: dt.datetime) -> Maturity:
    return Maturity(
        immature="keep",
        cutoff=cutoff,
        conversion_window=dt.timedelta(days=3),
        min_known_share=0.1,
        delays_us=np.zeros(0, np.int64),
    )


def test_a_label_known_at_the_cutoff_is_none_and_one_known_before_is(
    simulated_config: Config, simulated_source: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    ingest(simulated_config, workspace, simulated_source)
    days = days_of(simulated_config, workspace, None)
    featurize(simulated_config, workspace, days)
    folder = run_folder(simulated_config, workspace, days)
    encoder = load_encoder(folder / "features" / "encoder.json")
    spec = ranker_spec(simulated_config, plan_of(simulated_config), encoder, "linear", 1)
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    day = days.train[-1]
    times = tables.scan(table, version).filter(pl.col("date") == day).collect()["conversion_known_at"].drop_nulls()
    middle = times.sort()[len(times) // 2]
    assert isinstance(middle, dt.datetime)
    known = {
        "never": read_examples(table, version, day, spec, None),
        "at": read_examples(table, version, day, spec, _before(middle)),
        "after": read_examples(table, version, day, spec, _before(middle + dt.timedelta(microseconds=1))),
    }
    counts = {name: int(examples.conversions.sum()) for name, examples in known.items()}
    assert counts == {"never": len(times), "at": (times < middle).sum(), "after": (times <= middle).sum()}
    assert counts["at"] < counts["after"] < counts["never"]
    assert known["at"].clicks.sum() < known["never"].clicks.sum()
