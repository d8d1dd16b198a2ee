"""A training label counts only where it was known before the cutoff; the ranker reads what the configuration says."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.encoding import load_encoder
from models.ranker import Ranker
from models.serialization import weights_digest
from pipeline import tables
from pipeline.config import Config
from pipeline.dataset import ranker_spec, read_examples
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.fit import fit_of, fit_ranker
from pipeline.ingest import ingest
from pipeline.maturity import Maturity
from pipeline.study_data import Study
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


@pytest.mark.parametrize(
    "options",
    [
        {"sequence": "attention"},
        {"numeric_encoding": "periodic", "frequencies": 3, "frequency_scale": 0.5},
        {"sequence": "attention", "numeric_encoding": "periodic", "body": "single_task"},
    ],
)
def test_a_ranker_with_an_option_of_its_inputs_trains_to_equal_bytes(
    small_study: Study, options: dict[str, object]
) -> None:
    model = small_study.config.model.model_copy(update=options)
    study = replace(small_study, config=small_study.config.model_copy(update={"model": model}))
    spec = study.spec(model.body, 1)
    assert spec.zero_bin
    assert spec.attention == (["last_clicked_items", "last_converted_items"] if "sequence" in options else [])
    assert spec.numeric_encoding == options.get("numeric_encoding", "piecewise_linear")
    assert (spec.frequencies, spec.frequency_scale) == (model.frequencies, model.frequency_scale)
    trained = [fit_ranker(spec, fit_of(study.config), study.training, study.validation) for _ in range(2)]
    assert weights_digest(trained[0][0]) == weights_digest(trained[1][0]) != weights_digest(Ranker(spec))
    assert trained[0][1] == trained[1][1]
