"""The command text-classify: its split, its figures against hand-made ones, its files, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.text_metrics import text_metrics, text_replicates
from pipeline.text_model import load_text_model
from pipeline.text_table import read_text_table

ROOT = Path(__file__).parents[2]
ROWS = 400


def _frame(rows: int = ROWS) -> pl.DataFrame:
    generator = np.random.default_rng(1)
    kind, demand, noise = (generator.integers(high, size=rows) for high in (3, 2, 40))
    return pl.DataFrame(
        {
            "title": [
                f"k{a} d{b} n{c} r{place}" for place, (a, b, c) in enumerate(zip(kind, demand, noise, strict=True))
            ],
            "kind": [f"kind {a}" for a in kind],
            "demand": demand,
            "day": pl.date_range(pl.date(2026, 1, 1), pl.date(2026, 1, 1) + pl.duration(days=rows - 1), eager=True),
        }
    )


def _classify(table: Path, output: Path, *arguments: str) -> str:
    common = ["--table", str(table), "--text", "title", "--output", str(output), "--replicates", "40", "--seeds", "2"]
    found = CliRunner().invoke(app, ["text-classify", *common, *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("text")
    _frame().write_parquet(folder / "items.parquet")
    output = folder / "out"
    labels = ("--label", "kind", "--label", "demand")
    return output, _classify(folder / "items.parquet", output, *labels, "--time", "day", "--epochs", "20")


def test_what_texts_tell_is_learned_by_joint_and_separate_classifiers(classified: tuple[Path, str]) -> None:
    result = json.loads((classified[0] / "result.json").read_text(encoding="utf-8"))
    assert result["rows"] == {"training": 280, "validation": 40, "test": 80}
    for task in result["tasks"].values():
        for way in ("joint", "separate"):
            assert task[way]["accuracy"]["value"] > 0.95
            assert task[way]["macro_f1"]["value"] > 0.95
            assert all(0 <= found["low"] <= found["high"] <= 1 for found in task[way].values())
        difference = task["joint_minus_separate"]["accuracy"]
        assert difference["low"] <= difference["value"] <= difference["high"]
        assert difference["p_holm"] >= difference["p"]
        assert task["majority_accuracy"] < 0.7
    assert result["parameters"]["joint"] < result["parameters"]["separate"]


def test_the_command_prints_each_task_and_the_cost(classified: tuple[Path, str]) -> None:
    for text in (
        "kind",
        "demand",
        "macro_f1",
        "split by time, column 'day'",
        "2 seeds: joint",
        "0 rows without a word",
        "no p-value adjusted for 4 figures is below 0.05: nothing can be shown, raise --replicates to 160 or more",
    ):
        assert text in classified[1]


def test_the_saved_model_is_the_joint_one_and_reads_texts(classified: tuple[Path, str]) -> None:
    model = load_text_model(classified[0] / "model")
    vectors = model.vectors(pl.Series(["k0 d1", "K0, d1!", "k2 d1"]))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    assert model.classes == {"kind": ["kind 0", "kind 1", "kind 2"], "demand": ["0", "1"]}


def test_a_words_file_that_is_missing_or_of_another_model_is_refused(
    classified: tuple[Path, str], tmp_path: Path
) -> None:
    for name in ("weights.safetensors", "spec.json"):
        (tmp_path / name).write_bytes((classified[0] / "model" / name).read_bytes())
    with pytest.raises(ValueError, match=r"words.json cannot be read"):
        load_text_model(tmp_path)
    words = json.loads((classified[0] / "model" / "words.json").read_text(encoding="utf-8"))
    (tmp_path / "words.json").write_text(json.dumps(words | {"buckets": 7}), encoding="utf-8")
    with pytest.raises(ValueError, match="is not of the model beside it"):
        load_text_model(tmp_path)
    for damaged in ("{}", "[]"):
        (tmp_path / "words.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match=r"words.json cannot be read"):
            load_text_model(tmp_path)


def test_two_runs_write_the_same_figures(classified: tuple[Path, str], tmp_path: Path) -> None:
    _frame().write_ndjson(tmp_path / "items.jsonl")
    arguments = ("--label", "kind", "--label", "demand", "--time", "day", "--epochs", "20")
    _classify(tmp_path / "items.jsonl", tmp_path / "again", *arguments)
    first, second = (
        json.loads((folder / "result.json").read_text(encoding="utf-8"))["tasks"]
        for folder in (classified[0], tmp_path / "again")
    )
    assert first == second


def test_equal_texts_are_on_one_side_and_parts_have_their_shares(tmp_path: Path) -> None:
    frame = _frame(2000).with_columns(title=pl.concat_str(pl.lit("No "), pl.int_range(pl.len()) // 2))
    shouted = frame.with_columns(pl.col("title").str.to_uppercase() + "!")
    pl.concat([frame, shouted]).write_csv(tmp_path / "items.csv")
    table = read_text_table(tmp_path / "items.csv", "title", ["kind"], None)
    sides = pl.DataFrame({"text": table.distinct, "part": table.part}).group_by("text").agg(pl.col("part").n_unique())
    assert sides.height == 1000
    assert sides["part"].to_list() == [1] * 1000
    assert np.bincount(table.part) / 4000 == pytest.approx([0.7, 0.1, 0.2], abs=0.04)


def test_rows_of_one_moment_stay_together_in_the_order_of_time(tmp_path: Path) -> None:
    frame = _frame().with_columns(day=pl.int_range(pl.len()) // 30).sample(fraction=1.0, shuffle=True, seed=2)
    frame.write_parquet(tmp_path / "items.parquet")
    table = read_text_table(tmp_path / "items.parquet", "title", ["kind"], "day")
    days = [set(frame["day"].filter(table.part == part)) for part in range(3)]
    assert max(days[0]) < min(days[1])
    assert max(days[1]) < min(days[2])


def test_rows_without_a_word_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = pl.concat([_frame(), _frame(3).with_columns(title=pl.Series([None, "", "?!"]))])
    frame.write_parquet(tmp_path / "items.parquet")
    table = read_text_table(tmp_path / "items.parquet", "title", ["kind"], None)
    assert (table.without_words, len(table.texts)) == (3, ROWS)


def test_missing_labels_and_classes_that_training_lacks_are_told_apart(tmp_path: Path) -> None:
    kinds = _frame()["kind"].to_list()
    frame = _frame().with_columns(kind=pl.Series([None, "", *kinds[2:-2], "new", None]))
    frame.write_parquet(tmp_path / "items.parquet")
    table = read_text_table(tmp_path / "items.parquet", "title", ["kind"], "day")
    assert table.classes["kind"] == ["kind 0", "kind 1", "kind 2"]
    assert table.labels[[0, 1, -2, -1], 0].tolist() == [-1, -1, 3, -1]


def test_accuracy_and_macro_f1_equal_their_definitions() -> None:
    labels, predicted = np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 1, 0])  # 3 is a class that training lacked
    found = text_metrics(labels, predicted, np.array([[1.0, 1, 1, 1, 1], [2, 0, 0, 1, 1]]))
    assert found[0] == pytest.approx([2 / 5, (2 / 4 + 2 / 4 + 0 + 0) / 4])
    assert found[1] == pytest.approx([2 / 4, (4 / 5) / 4])


def test_equal_texts_are_drawn_together() -> None:
    labels = np.repeat([0, 1], 50)
    one = text_replicates(labels, [np.zeros(100, np.int64)], labels, replicates=60, seed=1)
    assert set(one.draws_RSM[:, 0, 0].tolist()) == {0.0, 0.5, 1.0}
    with pytest.raises(ValueError, match="bootstrap replicates is 0"):
        text_replicates(labels, [labels], labels, replicates=0, seed=1)


Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.mark.parametrize(
    ("change", "labels", "time", "message"),
    [
        (lambda frame: frame, ["colour"], None, r"has no columns \['colour'\]: expected some of"),
        (lambda frame: frame, ["kind", "kind"], None, "are named twice"),
        (lambda frame: frame.with_columns(title=1), ["kind"], None, "'title' is Int32, expected text"),
        (lambda frame: frame.with_columns(title=pl.lit("!")), ["kind"], None, "no row of column 'title' has a word"),
        (lambda frame: frame.with_columns(kind=0.5), ["kind"], None, "'kind' is Float64, expected text, whole numbers"),
        (lambda frame: frame.with_columns(kind=pl.lit("a")), ["kind"], None, "has one class in the training rows, 'a'"),
        (lambda frame: frame.with_columns(kind=pl.lit(None, pl.String)), ["kind"], None, "no value in the training"),
        (lambda frame: frame, ["kind"], "demand", "has no value in the validation rows, 0 of 400"),
        (lambda frame: frame.with_columns(day=pl.lit(True)), ["kind"], "day", "'day' is Boolean, expected times"),  # noqa: FBT003
        (lambda frame: frame.with_columns(day=pl.lit(float("nan"))), ["kind"], "day", "no time, such as nan: expected"),
        (lambda frame: frame.with_columns(day=pl.lit("soon")), ["kind"], "day", "400 values that are no time, such as"),
    ],
)
def test_a_table_that_cannot_serve_is_refused(
    tmp_path: Path, change: Change, labels: list[str], time: str | None, message: str
) -> None:
    change(_frame()).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=message):
        read_text_table(tmp_path / "items.parquet", "title", labels, time)


def test_validation_rows_of_new_classes_alone_are_refused_since_they_choose_no_epoch(tmp_path: Path) -> None:
    kinds = _frame()["kind"].to_list()
    frame = _frame().with_columns(kind=pl.Series([*kinds[:280], *["new", "newer"] * 20, *kinds[320:]]))
    frame.write_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="no value in the validation rows that the training rows have"):
        read_text_table(tmp_path / "items.parquet", "title", ["kind"], "day")


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    _frame().rename({"kind": "[/b]", "day": "[red]"}).write_parquet(tmp_path / "[i].parquet")
    arguments = ("--label", "[/b]", "--label", "demand", "--time", "[red]", "--epochs", "1")
    printed = _classify(tmp_path / "[i].parquet", tmp_path / "out", *arguments)
    for name in ("[/b]", "column '[red]'", "[i].parquet"):
        assert name in printed


def test_what_the_first_fit_imports_does_not_count_for_the_joint_model(tmp_path: Path) -> None:
    _frame().write_parquet(tmp_path / "items.parquet")
    arguments = ["--table", str(tmp_path / "items.parquet"), "--text", "title", "--label", "kind", "--seeds", "1"]
    options = ["--epochs", "1", "--replicates", "20", "--output", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-m", "pipeline", "text-classify", *arguments, *options], check=True, cwd=ROOT)
    seconds = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["seconds"]
    assert seconds["joint"] < seconds["separate"] + 0.4  # one label: the same fit twice


def test_rows_without_a_label_are_told_by_the_count_of_those_with_one(tmp_path: Path) -> None:
    kinds = _frame()["kind"].to_list()
    frame = _frame().with_columns(kind=pl.Series([*[None] * 25, *kinds[25:-5], *["new"] * 2, *[None] * 3]))
    frame.write_parquet(tmp_path / "items.parquet")
    _classify(tmp_path / "items.parquet", tmp_path / "out", "--label", "kind", "--time", "day", "--epochs", "1")
    task = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["tasks"]["kind"]
    assert [task[name] for name in ("training_rows", "test_rows", "test_rows_of_new_classes")] == [255, 77, 2]


def test_an_id_is_no_label(tmp_path: Path) -> None:
    frame = pl.DataFrame({"title": [f"t{place}" for place in range(3000)], "id": range(3000)})
    frame.write_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="classes, expected at most 1000: is it an id"):
        read_text_table(tmp_path / "items.parquet", "title", ["id"], None)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file that ends in one of .parquet, .csv, .jsonl"):
        read_text_table(tmp_path / "items.xlsx", "title", ["kind"], None)
    with pytest.raises(ValueError, match="does not exist"):
        read_text_table(tmp_path / "items.csv", "title", ["kind"], None)
    (tmp_path / "items.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_text_table(tmp_path / "items.parquet", "title", ["kind"], None)
    (tmp_path / "out").touch()
    _frame().write_csv(tmp_path / "items.csv")
    with pytest.raises(ValueError, match="exists: give a new folder, or remove it"):
        _classify(tmp_path / "items.csv", tmp_path / "out", "--label", "kind")
