"""`counterpoise sources` on a small run: what it writes, that it repeats, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from features.encoding import load_encoder
from models.retriever import Retriever, save_retriever
from models.sequence import load_sequence_model
from pipeline.__main__ import app
from pipeline.config import Config
from pipeline.dataset import retriever_spec
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.semantic_ids import load_semantic_ids
from pipeline.source_study import MERGES, SourceStudy, study_sources
from pipeline.workspace import Workspace

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulated.toml"
STUDY = SourceStudy(epochs=1, users=30, width=20)


@pytest.fixture(scope="module")
def place(simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A featurized workspace whose towers have their initial weights."""
    workspace = Workspace(tmp_path_factory.mktemp("sources") / "workspace")
    ingest(simulated_config, workspace, simulated_source)
    days = days_of(simulated_config, workspace, None)
    featurize(simulated_config, workspace, days)
    folder = run_folder(simulated_config, workspace, days)
    encoder = load_encoder(folder / "features" / "encoder.json")
    towers = Retriever(retriever_spec(simulated_config, plan_of(simulated_config), encoder, 1)).eval()
    save_retriever(towers, folder / "model" / "retriever")
    shutil.copy(folder / "features" / "encoder.json", folder / "model" / "encoder.json")
    return workspace


@pytest.fixture(scope="module")
def written(place: Workspace) -> Path:
    """What the command writes."""
    folder = place.root.parent / "written"
    options = ["--epochs", "1", "--users", "30", "--candidates", "20", "--date", "2026-01-05", "--seed", "1"]
    where = ["--config", str(EXAMPLE), "--workspace", str(place.root), "--set", "source.time_zone=Asia/Shanghai"]
    found = CliRunner().invoke(app, ["sources", *where, *options, "--output", str(folder)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    assert "two_towers + sequence, hits of click: two_towers" in found.output
    return folder


@pytest.fixture(scope="module")
def figures(written: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((written / "sources.json").read_text(encoding="utf-8"))
    return read


def test_every_source_and_merge_has_recalls_with_intervals_and_differences_to_the_towers(
    figures: dict[str, Any],
) -> None:
    assert set(figures["recall"]) == {"two_towers", "sequence", "popular", "co_occurrence", *MERGES}
    towers = figures["recall"]["two_towers"]
    for source, labels in figures["recall"].items():
        assert set(labels) == {"click", "conversion"}
        for label, by_k in labels.items():
            assert set(by_k) == {"10"}
            assert by_k["10"]["low"] <= by_k["10"]["value"] <= by_k["10"]["high"]
            if source != "two_towers":
                expected = by_k["10"]["value"] - towers[label]["10"]["value"]
                assert by_k["10"]["to_towers"]["value"] == pytest.approx(expected)


def test_quotas_fill_the_list_and_are_of_the_day_before(figures: dict[str, Any]) -> None:
    assert (figures["learned_on"], figures["measured_on"]) == ("2026-01-04", "2026-01-05")
    assert all(sum(places.values()) == 20 for places in figures["quotas"].values())


def test_the_saved_model_reads_the_saved_ids(written: Path) -> None:
    ids, model = load_semantic_ids(written / "semantic_ids", "sources"), load_sequence_model(written / "sequence")
    assert model.spec.targets == dict.fromkeys(("click", "conversion"), 4 + sum(ids.sizes))


def test_the_same_study_gives_the_same_figures(
    simulated_config: Config, place: Workspace, written: Path, figures: dict[str, Any]
) -> None:
    again = written.parent / "again"
    found = json.loads(json.dumps(study_sources(simulated_config, place, STUDY, again)))
    for name in ("recall", "quotas", "adds"):
        assert found[name] == figures[name]
    assert (again / "sequence" / "spec.json").read_bytes() == (written / "sequence" / "spec.json").read_bytes()


def test_a_run_without_a_model_and_a_folder_that_exists_are_refused(
    simulated_config: Config, place: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="exists: give a new folder, or remove it"):
        study_sources(simulated_config, place, STUDY, tmp_path)
    other = simulated_config.model_copy(update={"seed": 77})
    with pytest.raises(ValueError, match=r"spec\.json cannot be read"):
        study_sources(other, place, STUDY, tmp_path / "new")
