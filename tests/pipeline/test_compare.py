"""Bodies compared on the same rows: what is reported, what is kept, what is refused."""

import dataclasses
import io
import json
import shutil
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.compare import COMPARED, Comparison, compare, differences_of
from pipeline.compare_page import data_text, every_pair, terminal_table, too_few, write_compare_page
from pipeline.evaluate import OUTPUT_OF, TASKS
from pipeline.fit import fit_of
from pipeline.metrics import evaluate_task
from pipeline.significance import holm, replicate_metrics
from pipeline.study_data import Study
from pipeline.study_training import Fitted, Material, sizes, train, train_ranker

COMPARISON = Comparison(bodies=("single_task", "ple"), seeds=2, replicates=40)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "cache"


@pytest.fixture(scope="module")
def result(small_study: Study, kept: Path) -> dict[str, Any]:
    return compare(small_study, dataclasses.replace(COMPARISON, cache=kept))


def test_every_model_has_its_level_of_every_task_and_its_costs(small_study: Study, result: dict[str, Any]) -> None:
    assert list(result["models"]) == ["single_task", "ple"]
    for model in result["models"].values():
        assert model["seeds"] == 2
        assert 0 < model["parameters_outside_tables"] < model["parameters"]
        assert model["scoring_rows_per_cpu_second"] > 0
        for task in TASKS:
            auc = model["tasks"][task]["auc"]
            assert auc["mean"] == pytest.approx(np.mean(auc["by_seed"]))
            assert auc["standard_deviation"] == pytest.approx(np.std(auc["by_seed"], ddof=1))
    json.dumps(result, allow_nan=False)
    assert result["days"] == [str(day) for day in small_study.days.validation]


def test_the_level_of_a_seed_is_that_of_its_own_predictions(small_study: Study, result: dict[str, Any]) -> None:
    material = Material(small_study.training, small_study.validation, {"measured": small_study.measured})
    fit = fit_of(small_study.config.model_copy(update={"seed": 2}))
    predictions = train_ranker(small_study.spec("ple", 2), fit, material, None).predictions["measured"]
    rows = small_study.rows()
    for task in TASKS:
        labels, space = rows.of_task(task)
        probabilities = predictions[space, OUTPUT_OF[task]]
        found = evaluate_task(labels=labels[space], probabilities=probabilities, users=rows.users[space], replicates=1)
        for name in ("auc", "gauc", "log_loss", "pcoc"):
            assert result["models"]["ple"]["tasks"][task][name]["by_seed"][1] == pytest.approx(found[name].value)


def test_a_difference_is_that_of_the_means_and_turns_its_sign_with_the_reference(result: dict[str, Any]) -> None:
    for task in TASKS:
        one = result["differences"][task]["single_task"]["ple"]
        other = result["differences"][task]["ple"]["single_task"]
        levels = {name: model["tasks"][task] for name, model in result["models"].items()}
        for name in COMPARED:
            assert one[name]["value"] == pytest.approx(
                levels["ple"][name]["mean"] - levels["single_task"][name]["mean"]
            )
            assert one[name]["value"] == pytest.approx(-other[name]["value"])
            assert one[name]["low"] <= one[name]["value"] <= one[name]["high"]
            assert one[name]["p_holm"] == one[name]["p"], "a single comparison is its own family"
        assert one["delong"]["value"] == pytest.approx(one["auc"]["value"])


def test_a_comparison_that_goes_on_gives_the_same_bytes(
    small_study: Study, result: dict[str, Any], kept: Path, tmp_path: Path
) -> None:
    again = compare(small_study, dataclasses.replace(COMPARISON, cache=kept))
    assert json.dumps(again) == json.dumps(result)
    cache = shutil.copytree(kept, tmp_path / "cache")
    shutil.rmtree(next(cache.glob("ple-seed-1-*")))
    resumed = compare(small_study, dataclasses.replace(COMPARISON, cache=cache))
    assert json.dumps(resumed["differences"]) == json.dumps(result["differences"])


def test_what_is_kept_is_read_only_for_the_same_rows_and_settings(small_study: Study, tmp_path: Path) -> None:
    material = Material(small_study.training, small_study.validation, {"measured": small_study.measured})
    fit, spec = fit_of(small_study.config.model_copy(update={"seed": 1})), small_study.spec("linear", 1)
    first = train_ranker(spec, fit, material, tmp_path)
    assert train_ranker(spec, fit, material, tmp_path).record == first.record
    assert len(list(tmp_path.iterdir())) == 1
    train_ranker(spec, fit, dataclasses.replace(material, training=small_study.training[1:]), tmp_path)
    train_ranker(spec, dataclasses.replace(fit, batch_size=64), material, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_kept_is_trained_again_where_further_code_changed(small_study: Study, tmp_path: Path) -> None:
    material = Material(small_study.training[:1], [], {"measured": small_study.measured})
    code, made = tmp_path / "peer.py", []

    def make() -> Fitted:
        made.append(code.read_text())
        return Fitted(lambda features: np.zeros((len(features), 3)))

    for text in ("one", "one", "two"):
        code.write_text(text)
        train("peer", [], material, tmp_path / "kept", make, code=[code])
    assert made == ["one", "two"]


def test_what_a_difference_shows_follows_its_adjusted_p_and_sign() -> None:
    generator = np.random.default_rng(1)
    labels, users = generator.random(3000) < 0.3, generator.integers(200, size=3000)
    noise = generator.random((3, 4, 3000))
    predictions = {
        name: [0.1 + 0.3 * one + strength * labels for one in many]
        for (name, strength), many in zip({"weak": 0.05, "alike": 0.05, "strong": 0.2}.items(), noise, strict=True)
    }
    measured = replicate_metrics(labels=labels, users=users, predictions=predictions, replicates=400, seed=0)
    found = differences_of(measured, defaultdict(dict))
    for metric in ("auc", "gauc", "log_loss"):
        shows = {name: one[metric]["shows"] for name, one in found["weak"].items()}
        assert shows == {"alike": "nothing shown", "strong": "beats"}
        assert {one[metric]["shows"] for one in found["strong"].values()} == {"loses"}
        for one in found["weak"].values():
            assert one[metric]["p"] <= one[metric]["p_holm"] <= 3 * one[metric]["p"]


def test_a_pair_has_one_p_adjusted_for_all_pairs_whichever_model_is_the_reference() -> None:
    generator = np.random.default_rng(3)
    labels, users = generator.random(1000) < 0.3, generator.integers(100, size=1000)
    noise = generator.random((4, 2, 1000))
    predictions = {
        name: [0.1 + 0.3 * one + strength * labels for one in many]
        for (name, strength), many in zip({"a": 0.0, "b": 0.03, "c": 0.05, "d": 0.2}.items(), noise, strict=True)
    }
    measured = replicate_metrics(labels=labels, users=users, predictions=predictions, replicates=300, seed=0)
    found = differences_of(measured, defaultdict(dict))
    pairs = list(combinations(predictions, 2))
    for metric in COMPARED:
        adjusted = holm([found[one][other][metric]["p"] for one, other in pairs])
        for (one, other), p_holm in zip(pairs, adjusted, strict=True):
            there, back = found[one][other][metric], found[other][one][metric]
            assert there["p_holm"] == back["p_holm"] == p_holm
            assert [there["low"], there["high"]] == [-back["high"], -back["low"]]
            assert {there["shows"], back["shows"]} in ({"nothing shown"}, {"beats", "loses"})


def test_the_page_says_where_resamples_are_too_few_for_the_pairs_and_what_baselines_saw() -> None:
    models: dict[str, Any] = {name: {} for name in ("ple", "mmoe", "lightgbm")}
    result = {"models": models, "replicates": 119, "counts": {}, "on": "validation", "days": [], "seeds": 2}
    result["source"] = "run 1"
    assert "adjusted for 3 pairs is below 0.05" in too_few(result)[0]
    assert "raise --replicates to 120 or more" in too_few(result)[0]
    assert too_few(result | {"replicates": 120}) == []
    tuned = "For the baselines these days also selected regularisation and number of trees"
    assert tuned in data_text(result)
    assert tuned not in data_text(result | {"on": "test"})
    assert tuned not in data_text(result | {"models": {"ple": {}, "mmoe": {}}})


def test_names_that_do_not_exist_and_a_lone_model_are_refused(small_study: Study) -> None:
    with pytest.raises(ValueError, match=r"--bodies names \['mmmoe'\]: expected some of \['linear', 'single_task'"):
        compare(small_study, Comparison(bodies=("ple", "mmmoe")))
    with pytest.raises(ValueError, match=r"--baselines names \['xgboost'\]: expected some of"):
        compare(small_study, Comparison(bodies=("ple",), baselines=("xgboost",)))
    with pytest.raises(ValueError, match=r"needs two models, got \['ple'\]"):
        compare(small_study, Comparison(bodies=("ple", "ple")))


def test_every_pair_stands_in_the_table_with_its_mirror(result: dict[str, Any]) -> None:
    differences = result["differences"]["click"]
    names, table = list(differences), every_pair(differences)
    assert table.columns == ["AUC", *(f"- {name}" for name in names)]
    for row, name in zip(table.rows, names, strict=True):
        assert row[0] == name
        for cell, other in zip(row[1:], names, strict=True):
            value = "-" if other == name else f"{differences[other][name]['auc']['value']:+.4f} ["
            assert cell.startswith(value)


def test_the_page_and_the_terminal_show_every_model(result: dict[str, Any], tmp_path: Path) -> None:
    write_compare_page(tmp_path / "compare.html", result)
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    difference = result["differences"]["click"]["single_task"]["ple"]["auc"]
    assert f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]" in page
    assert page.count('class="chart"') == 3
    assert "AUC of click, on impressions, against single_task. No difference shown: ple " in page
    assert "selected the epoch of every model" in page
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(terminal_table(result))
    text = console.export_text()
    assert "single_task" in text
    assert f"{difference['value']:+.4f}" in text


def test_baselines_are_trained_once_and_held_against_every_seed(small_study: Study, kept: Path) -> None:
    pytest.importorskip("pipeline.baselines")
    found = compare(
        small_study,
        Comparison(bodies=("ple",), baselines=("sk_logistic_regression",), seeds=2, replicates=20, cache=kept),
    )
    assert found["models"]["sk_logistic_regression"]["seeds"] == 1
    assert found["differences"]["click"]["sk_logistic_regression"]["ple"]["auc"]["value"] is not None


def test_weights_outside_the_tables_are_all_but_the_embeddings(small_study: Study) -> None:
    from models.ranker import Ranker

    ranker = Ranker(small_study.spec("shared_bottom", 1))
    table = sum(weight.numel() for name, weight in ranker.named_parameters() if "table" in name)
    counted = sizes(ranker)
    assert counted["parameters"] - counted["parameters_outside_tables"] == table
