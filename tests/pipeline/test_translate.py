"""Translators: number words to near perfection, equal cost, what comes back from a folder, and what is refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from models.sequence import END, FIRST_KNOWN, UNKNOWN, SequenceSpec, forward_operations
from models.serialization import weights_digest
from pipeline.__main__ import app
from pipeline.sequence_fit import Pairs, SequenceFit, fit_sequence
from pipeline.significance import holm
from pipeline.translate import TRANSLATED, Translation, load_translator, train_translators
from pipeline.translation_table import Vocabulary, is_test, read_pairs, vocabulary_of

ROOT = Path(__file__).parents[2]
EPOCHS = 18


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All numbers below 1000 in three written forms."""
    path = tmp_path_factory.mktemp("numbers") / "numbers.csv"
    command = [sys.executable, "-m", "benchmarks.number_words", "--output", str(path)]
    subprocess.run([*command, "--numbers", "1000", "--highest", "999"], check=True, cwd=ROOT, capture_output=True)
    return path


@pytest.fixture(scope="module")
def trained(numbers: Path) -> Path:
    """What the command writes of them."""
    folder = numbers.parent / "trained"
    arguments = ["--source", "digits", "--target", "english", "--target", "french", "--output", str(folder)]
    options = ["--epochs", str(EPOCHS), "--seeds", "1", "--replicates", "50"]
    found = CliRunner().invoke(app, ["translate-train", "--table", str(numbers), *arguments, *options])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    assert "exact_match" in found.output
    assert (
        "no p-value adjusted for 6 figures is below 0.05: nothing can be shown, raise --replicates to 240"
        in found.output
    )
    return folder


@pytest.fixture(scope="module")
def figures(trained: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((trained / "translate.json").read_text(encoding="utf-8"))
    return read


def test_numbers_are_written_as_both_languages_write_them(numbers: Path) -> None:
    frame = read_pairs(numbers, ["digits", "english", "french"])
    written = {digits: (english, french) for digits, english, french in frame.iter_rows()}
    assert len(written) == 1000
    assert written["0"] == ("zero", "zéro")
    assert written["8 0"] == ("eighty", "quatre vingts")
    assert written["1 0 1"] == ("one hundred and one", "cent un")
    assert written["2 7 1"] == ("two hundred and seventy - one", "deux cent soixante et onze")
    assert written["3 0 0"] == ("three hundred", "trois cents")
    assert written["9 9 7"] == ("nine hundred and ninety - seven", "neuf cent quatre vingt dix sept")


def test_more_numbers_than_there_are_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.number_words", "--output", str(tmp_path / "n.csv"), "--highest", "99"]
    found = subprocess.run([*command, "--numbers", "101"], check=False, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert "101 different numbers from 0 to 99" in found.stderr


def test_number_words_that_were_never_seen_are_nearly_all_right(figures: dict[str, Any]) -> None:
    for target in ("english", "french"):
        found = figures["metrics"][target]
        assert found["exact_match"]["joint"]["value"] > 0.95
        assert found["token_accuracy"]["joint"]["value"] > 0.99
        assert found["bleu"]["joint"]["value"] > 98


def test_each_figure_has_an_interval_and_the_difference_is_that_of_both_systems(figures: dict[str, Any]) -> None:
    for target in ("english", "french"):
        for found in figures["metrics"][target].values():
            assert all(one["low"] <= one["value"] <= one["high"] for one in found.values())
            joint, separate = found["joint"]["value"], found["separate"]["value"]
            assert found["difference"]["value"] == pytest.approx(joint - separate)


def test_p_values_of_all_differences_are_adjusted_together_and_intervals_end_where_figures_do(tmp_path: Path) -> None:
    columns = {"a": [f"{n}" for n in range(40)], "b": ["x y"] * 40, "c": [f"z {n % 2}" for n in range(40)]}
    translation = Translation(_write(tmp_path / "t.csv", columns), "a", ("b", "c"), 3, 2, 20)
    found = train_translators(translation, tmp_path / "out")["metrics"]
    differences = [one["difference"] for metrics in found.values() for one in metrics.values()]
    assert [one["p_holm"] for one in differences] == holm([one["p"] for one in differences])
    for metrics in found.values():
        for name, one in metrics.items():
            most = 100 if name == "bleu" else 1
            assert all(0 <= one[way]["low"] <= one[way]["high"] <= most for way in ("joint", "separate"))
            assert -most <= one["difference"]["low"] <= one["difference"]["high"] <= most


def test_separate_models_together_cost_what_the_joint_one_costs(figures: dict[str, Any], numbers: Path) -> None:
    frame = read_pairs(numbers, ["digits", "english", "french"])
    training = frame.filter(~is_test(frame["digits"].to_list()))
    sizes = {name: vocabulary_of(training[name].to_list()).size for name in frame.columns}
    lengths = {name: round(training[name].str.split(" ").list.len().mean() + 1) for name in ("english", "french")}  # type: ignore[operator]
    spec = SequenceSpec(source_vocabulary=sizes["digits"], targets={name: sizes[name] for name in lengths})
    steps = figures["steps"]
    joint = steps["joint"] * forward_operations(spec, 3, lengths)
    apart = 0
    for name, length in lengths.items():
        alone = SequenceSpec(source_vocabulary=sizes["digits"], targets={name: sizes[name]})
        apart += steps[name] * forward_operations(alone, 3, {name: length})
    assert steps["joint"] == EPOCHS * -(-training.height // 64)
    assert apart == pytest.approx(joint, rel=0.02)
    assert figures["parameters"]["joint"] < figures["parameters"]["english"] + figures["parameters"]["french"]


def test_a_translator_that_is_read_back_translates_alike_and_marks_no_unknown_token_as_known(
    trained: Path, figures: dict[str, Any], numbers: Path
) -> None:
    translator = load_translator(trained)
    frame = read_pairs(numbers, ["digits", "english"])
    tested = frame.filter(is_test(frame["digits"].to_list()))
    found = translator.translate(tested["digits"].to_list(), "english")
    share = sum(one == other for one, other in zip(found, tested["english"], strict=True)) / tested.height
    assert share == pytest.approx(figures["metrics"]["english"]["exact_match"]["joint"]["value"])
    assert translator.source.encode(["4 x"], ended=False).tolist() == [[FIRST_KNOWN + 4, UNKNOWN]]


def test_a_folder_whose_vocabularies_are_not_the_model_s_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    kept = json.loads((trained / "vocabularies.json").read_text(encoding="utf-8"))
    kept["tokens"]["english"].append("zillion")
    for document, message in (({}, "is damaged"), ([], "is damaged"), (kept, "is not of the model beside it")):
        (tmp_path / "vocabularies.json").write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_translator(tmp_path)


def test_equal_sources_are_on_one_side_in_every_table_and_a_fifth_tests() -> None:
    sources = [str(number) for number in range(2000)]
    sides = is_test(sources)
    assert is_test(sources[1000:] + sources[1000:]).to_list() == sides[1000:].to_list() * 2
    assert 0.17 < float(sides.mean()) < 0.23  # type: ignore[arg-type]


def test_texts_become_ids_and_texts_again() -> None:
    vocabulary = vocabulary_of(["b a", "a c"])
    assert vocabulary == Vocabulary(["a", "b", "c"])
    ids = vocabulary.encode(["c a", "b", "d"], ended=True)
    assert ids.tolist() == [[6, 4, END], [5, END, 0], [UNKNOWN, END, 0]]
    assert vocabulary.decode(ids) == ["c a", "b", "?"]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_texts_come_from_three_kinds_of_files_with_single_spaces(tmp_path: Path, name: str) -> None:
    frame = pl.DataFrame({"a": ["1", "2"], "b": [" x  y", "z\t"]})
    getattr(frame, {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet"}[name[2:]])(tmp_path / name)
    assert read_pairs(tmp_path / name, ["b", "a"]).to_dict(as_series=False) == {"b": ["x y", "z"], "a": ["1", "2"]}


def test_what_a_column_is_shows_anywhere_in_a_file_of_json_lines(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [None] * 200 + ["x"], "b": ["y"] * 201})
    frame.write_ndjson(tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match=r"missing or empty texts, by column: {'a': 200}"):
        read_pairs(tmp_path / "t.jsonl", ["a", "b"])


SPEC = SequenceSpec(source_vocabulary=9, targets={"a": 8, "b": 8}, width=16, heads=2, layers=1, dropout=0.1)


def _pairs() -> Pairs:
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(4, 9, (50, 6, 1), generator=generator)
    return Pairs(source, {"a": source[:, :3, 0].unsqueeze(1) - 1, "b": source[:, 3:, 0].unsqueeze(1) - 1})


def test_equal_fits_give_equal_weights_whatever_was_drawn_before_and_the_loss_falls() -> None:
    first, curve = fit_sequence(SPEC, SequenceFit(steps=40, batch_size=16), _pairs())
    torch.rand(7)
    again, _ = fit_sequence(SPEC, SequenceFit(steps=40, batch_size=16), _pairs())
    other, _ = fit_sequence(SPEC, SequenceFit(steps=40, batch_size=16, seed=1), _pairs())
    assert weights_digest(first) == weights_digest(again) != weights_digest(other)
    assert curve[-1] < 0.8 * curve[0]
    assert not first.training


def test_a_batch_is_as_short_as_its_longest_pair() -> None:
    source = torch.tensor([[[4], [5], [0], [0]], [[4], [0], [0], [0]], [[4], [5], [6], [7]]])
    targets = torch.tensor([[[4, 2, 0], [0, 0, 0]], [[2, 0, 0], [0, 0, 0]], [[4, 5, 2], [4, 2, 0]]])
    batch = Pairs(source, {"a": targets}).batch(torch.tensor([0, 1]))
    assert batch.source_RLC.tolist() == [[[4], [5]], [[4], [0]]]
    assert batch.targets["a"].tolist() == [[[4, 2]], [[2, 0]]]


def test_a_fit_without_pairs_and_one_that_diverges_are_refused() -> None:
    with pytest.raises(ValueError, match="0 pairs and 3 steps to fit, expected at least one of both"):
        fit_sequence(SPEC, SequenceFit(steps=3), Pairs(torch.zeros(0, 1, 1, dtype=torch.int64), {}))
    with pytest.raises(ValueError, match="the loss is no number any more"):
        fit_sequence(SPEC, SequenceFit(steps=20, learning_rate=1e30), _pairs())


def _write(path: Path, columns: dict[str, list[str | None]]) -> Path:
    pl.DataFrame(columns).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("columns", "targets", "message"),
    [
        ({"a": ["1"], "b": ["x"], "c": ["y"]}, ("b",), "--target names .*: expected two or more, different from"),
        ({"a": ["1"], "b": ["x"], "c": ["y"]}, ("b", "a"), "--target names .*: expected two or more, different from"),
        ({}, ("joint", "b", "type", "fr.txt"), r"names \['joint', 'type', 'fr.txt'\], which no decoder can be called"),
        ({"a": ["1"], "b": ["x"], "c": ["y"]}, ("b", "d"), r"has no column \['d'\], expected some of"),
        ({"a": [], "b": [], "c": []}, ("b", "c"), "has no rows"),
        (
            {"a": ["1", "2"], "b": ["x", None], "c": ["y", " "]},
            ("b", "c"),
            "missing or empty texts, by column: {'b': 1,",
        ),
        ({"a": ["1"], "b": ["x"], "c": ["y"]}, ("b", "c"), "expected 1 and 2 at least: give more rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    tmp_path: Path, columns: dict[str, list[str | None]], targets: tuple[str, ...], message: str
) -> None:
    table = _write(tmp_path / "t.csv", columns)
    with pytest.raises(ValueError, match=message):
        train_translators(Translation(table, "a", targets), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_too_long_for_memory_is_refused(tmp_path: Path) -> None:
    table = _write(tmp_path / "t.csv", {"a": ["1", "2"], "b": ["x " * 512, "x " * 513]})
    with pytest.raises(ValueError, match=r"texts of more than 512 tokens, by column: {'b': 1}; cut them"):
        read_pairs(table, ["a", "b"])


def test_fewer_texts_are_translated_at_once_where_the_vocabulary_is_large(trained: Path) -> None:
    small = load_translator(trained)
    large = replace(small, targets={"english": Vocabulary([str(place) for place in range(30_000)])})
    assert small.at_once("english", 20) == TRANSLATED
    assert large.at_once("english", 60) == 4
    assert large.at_once("english", 6000) == 1


@pytest.mark.parametrize("values", [[["x", "y"]], [{"x": "y"}], [b"x"]])
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, values: list[Any]) -> None:
    pl.DataFrame({"a": ["1"], "b": values}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"has columns that are no text: {'b': "):
        read_pairs(tmp_path / "t.parquet", ["a", "b"])


def test_a_target_that_looks_like_markup_is_printed_as_it_is(tmp_path: Path) -> None:
    table = _write(tmp_path / "t.csv", {"a": [f"{n}" for n in range(30)], "[/b]": ["x"] * 30, "c": ["y"] * 30})
    columns = ["--source", "a", "--target", "[/b]", "--target", "c", "--output", str(tmp_path / "out")]
    options = ["--epochs", "1", "--seeds", "1", "--replicates", "20"]
    found = CliRunner().invoke(app, ["translate-train", "--table", str(table), *columns, *options])
    assert found.exit_code == 0
    assert "[/b]" in found.output


def test_a_missing_or_damaged_table_and_a_folder_that_exists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    for name, message in (("t.txt", "expected a file that ends in"), ("bad.parquet", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            train_translators(Translation(tmp_path / name, "a", ("b", "c")), tmp_path / "out")
    with pytest.raises(ValueError, match="exists: give a new folder, or remove it"):
        train_translators(Translation(tmp_path / "t.csv", "a", ("b", "c")), tmp_path)
