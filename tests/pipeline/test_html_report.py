"""Claims on the page writer and on the reports of one and of two runs."""

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import vl_convert
from typer.testing import CliRunner

from pipeline import charts
from pipeline.__main__ import app
from pipeline.html_report import write_comparison, write_evaluation_report, write_run_report
from pipeline.page import Chart, Details, Missing, Section, Table, Text, anchor, embed_json, write_page
from pipeline.workspace import read_json, write_json

HOSTILE = "</script><script>alert(1)</script><b>&amp;\"'"


class Elements(HTMLParser):
    """Collects every element's tag and attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element."""
        self._tag = tag
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        if self._tag not in {"script", "style"}:
            self.text += data


def _specs(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    specs: dict[str, Any] = json.loads(found.group(1))
    return specs


def _report(folder: Path) -> str:
    write_run_report(folder, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def _numbers(values: Any) -> Iterator[dict[str, Any]]:
    if isinstance(values, dict):
        yield values
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else []:
        yield from _numbers(value)


def test_a_page_asks_for_nothing_outside_itself_and_is_smaller_than_2_mb(evaluated_run: Callable[..., Path]) -> None:
    page = _report(evaluated_run())
    elements = Elements(page).found
    assert not [tag for tag, values in elements if "src" in values or tag in {"iframe", "img", "object"}]
    assert [values["href"] for tag, values in elements if tag == "link"] == ["data:,"]
    assert all(str(values["href"]).startswith("#") for tag, values in elements if tag == "a")
    assert "default-src 'none'" in page
    assert len(page.encode()) < 2_000_000


def test_every_entry_of_the_navigation_leads_to_a_section(evaluated_run: Callable[..., Path]) -> None:
    elements = Elements(_report(evaluated_run())).found
    links = [str(values["href"])[1:] for tag, values in elements if tag == "a"]
    assert links == [values["id"] for tag, values in elements if tag == "section"]
    assert len(set(links)) == len(links)


def test_every_chart_has_its_specification_and_each_compiles(evaluated_run: Callable[..., Path]) -> None:
    page = _report(evaluated_run())
    specs = _specs(page)
    places = [values["id"] for tag, values in Elements(page).found if values.get("class") == "chart"]
    assert places == list(specs)
    for spec in specs.values():
        assert vl_convert.vegalite_to_vega({**spec, "width": 300})["marks"]


def test_the_headline_tells_which_lists_are_read_and_how_old_they_are(evaluated_run: Callable[..., Path]) -> None:
    folder = evaluated_run()
    assert "Not published yet" in Elements(_report(folder)).text
    live = {"version": "2026-01-05-00c0ffee", "scored_for": "2026-01-05", "model_version": "2", "store": "lmdb:feed"}
    write_json(folder / "published.json", {**live, "kept": ""})
    told = "lmdb:feed has version 2026-01-05-00c0ffee, lists for 2026-01-05 of model version 2."
    published = Elements(_report(folder))
    assert f"Published: {told}" in published.text
    kept = "the gate refused version 3 (failed: click GAUC); lists for 2026-01-05, 1 day old on 2026-01-06, stay"
    write_json(folder / "published.json", {**live, "kept": kept})
    page = Elements(_report(folder))
    assert f"Not published: {kept}; {told}" in page.text
    alarms = [sum(values.get("class") == "alarm" for _, values in one.found) for one in (published, page)]
    assert alarms[1] == alarms[0] + 1


def test_names_from_data_stay_text(tmp_path: Path) -> None:
    blocks = [Text(HOSTILE), Missing(HOSTILE), Details(HOSTILE, HOSTILE), Table([HOSTILE], [[HOSTILE]], HOSTILE)]
    chart = Chart(charts.bars({HOSTILE: [{"name": HOSTILE, "value": 1}]}, x="", y=""), HOSTILE, "chart")
    write_page(tmp_path / "page.html", HOSTILE, [Section(HOSTILE, [*blocks, chart])])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert elements.text.count(HOSTILE) == 12
    assert [tag for tag, _ in elements.found].count("script") == 3
    assert "b" not in {tag for tag, _ in elements.found}
    assert _specs(page)["chart"]["layer"][0]["data"]["values"][0]["name"] == HOSTILE


def test_a_segment_with_a_hostile_name_is_drawn_under_it(evaluated_run: Callable[..., Path]) -> None:
    page = _report(evaluated_run(segment=HOSTILE, name=HOSTILE))
    assert HOSTILE in {each.get("name") for each in _numbers(_specs(page))}
    assert HOSTILE in Elements(page).text
    assert "<script>alert" not in page


def test_json_in_a_script_cannot_end_it_and_holds_no_nan() -> None:
    assert json.loads(embed_json("</script><!--")) == "</script><!--"
    assert "<" not in embed_json("</script><!--")
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed_json(float("nan"))


def test_chart_ids_that_repeat_or_hold_other_signs_are_refused(tmp_path: Path) -> None:
    charts_of = [Chart({}, "", "one"), Chart({}, "", "one")]
    with pytest.raises(ValueError, match=r"'one' occurs 2 times in one page: give each its own"):
        write_page(tmp_path / "page.html", "", [Section("", charts_of)])
    with pytest.raises(ValueError, match=r"chart id 'a b': expected a letter, then letters, digits and dashes"):
        write_page(tmp_path / "page.html", "", [Section("", [Chart({}, "", "a b")])])
    assert not list(tmp_path.iterdir())


def test_a_page_without_charts_holds_no_library(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "Title", [Section("One", [Text("text")])])
    assert (tmp_path / "page.html").stat().st_size < 10_000


def test_a_column_of_numbers_is_aligned_to_the_right_but_the_first_never_is(tmp_path: Path) -> None:
    table = Table(["1", "2", "3"], [["1", "0.5 [0.4, 0.6]", "a"], ["2", "-", "1"]])
    write_page(tmp_path / "page.html", "", [Section("", [table])])
    heads = [values for tag, values in Elements((tmp_path / "page.html").read_text()).found if tag == "th"]
    assert [head.get("class") for head in heads] == [None, "number", None]


def test_anchors_hold_letters_and_digits_only() -> None:
    assert anchor("Gates & experts: 2") == "gates-experts-2"
    assert anchor("…") == "section"


def test_the_headline_stands_beside_the_latest_earlier_run_of_the_same_data_set(
    evaluated_run: Callable[..., Path],
) -> None:
    evaluated_run("2026-01-02", auc=0.5)
    evaluated_run("2026-01-03", auc=0.65)
    evaluated_run("2026-01-04", name="another", auc=0.9)
    evaluated_run("2026-01-06", auc=0.8)
    text = Elements(_report(evaluated_run("2026-01-05", auc=0.7))).text
    assert "The run before is 2026-01-03-0123abcd" in text
    assert "+0.0500" in text
    assert "0.6500 [0.6400, 0.6600]" in text


def test_without_an_earlier_run_the_report_says_so(evaluated_run: Callable[..., Path]) -> None:
    evaluated_run("2026-01-06")
    assert "No earlier run of this data set is in the workspace." in Elements(_report(evaluated_run())).text


def test_what_is_missing_is_named_with_the_stage_that_makes_it(evaluated_run: Callable[..., Path]) -> None:
    folder = evaluated_run()
    for name in ("register.json", "summary.json", "model/training.json"):
        (folder / name).unlink()
    evaluation = read_json(folder / "evaluation" / "evaluation.json", "evaluate")
    old = {key: evaluation[key] for key in ("tasks", "counts", "retrieval", "lists")}
    write_json(folder / "evaluation" / "evaluation.json", old)
    text = Elements(_report(folder)).text
    for stage in ("`counterpoise register`", "`counterpoise run`", "`counterpoise train`", "`counterpoise evaluate`"):
        assert stage in text
    for what in ("calibration curve", "segments", "importance of features", "counts per day", "exposure", "verdict"):
        assert what in text


def test_verdicts_that_alarm_stand_out_and_come_first(evaluated_run: Callable[..., Path]) -> None:
    page = _report(evaluated_run())
    assert '<p class="alarm">Dead: 61 % of the units of shared 1.</p>' in page
    assert page.index("Dead: 61 %") < page.index("No seesaw")


def test_only_the_20_most_important_features_are_drawn_and_undefined_intervals_are_not(
    evaluated_run: Callable[..., Path],
) -> None:
    folder = evaluated_run()
    path = folder / "evaluation" / "evaluation.json"
    evaluation = read_json(path, "evaluate")
    evaluation["importance"]["click"][24]["log_loss_increase"] = {"value": None, "low": None, "high": None}
    write_json(path, evaluation)
    spec = _specs(_report(folder))["log-loss-increase-click"]
    names = {each["name"] for layer in spec["layer"] for each in layer["data"]["values"] if "name" in each}
    assert names == {f"feature_{n}" for n in range(4, 24)}


def test_counts_of_further_tasks_and_why_one_is_not_measured_are_told(evaluated_run: Callable[..., Path]) -> None:
    folder = evaluated_run()
    path = folder / "evaluation" / "evaluation.json"
    told = {"watch": {"rows": 1234, "reason": "0 of 1234 test rows are above 0"}}
    write_json(path, read_json(path, "evaluate") | {"extra_tasks": told})
    assert re.search(r"watchreason0 of 1234 test rows are above 0\s*watchrows1,234", Elements(_report(folder)).text)


def test_a_run_that_was_not_evaluated_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation.json does not exist: run `counterpoise evaluate` first"):
        write_run_report(tmp_path, tmp_path / "report.html")


def test_the_report_of_an_evaluation_reads_nothing_that_a_later_stage_left(evaluated_run: Callable[..., Path]) -> None:
    folder = evaluated_run()
    write_evaluation_report(folder, folder / "evaluation")
    with_later = (folder / "evaluation" / "report.html").read_bytes()
    (folder / "register.json").unlink()
    (folder / "summary.json").unlink()
    write_evaluation_report(folder, folder / "evaluation")
    assert (folder / "evaluation" / "report.html").read_bytes() == with_later


def _write_predictions(folder: Path, shift: float, impressions: range = range(400)) -> None:
    generator = np.random.default_rng(3)
    truth = generator.uniform(0.1, 0.9, len(impressions))
    click = generator.uniform(size=len(truth)) < truth
    frame = {
        "impression_id": [str(n) for n in impressions],
        "user_id": [f"u{n % 40}" for n in impressions],
        "click": click,
        "conversion": click & (generator.uniform(size=len(truth)) < truth),
    }
    noise = np.random.default_rng(5).uniform(size=len(truth))
    predicted = (1 - shift) * truth + shift * noise
    frame |= dict.fromkeys(("p_click", "p_conversion", "p_click_and_conversion"), predicted)
    pl.DataFrame(frame).write_parquet(folder / "evaluation" / "predictions.parquet")


def _compared(first: Path, second: Path) -> str:
    write_comparison(first, second, first / "both.html")
    return Elements((first / "both.html").read_text(encoding="utf-8")).text


def _row(text: str, start: str) -> list[float]:
    line = text[text.index(start) :].split("\n", maxsplit=1)[0]
    return [float(value) for value in re.findall(r"[-+]?\d+\.\d{4}", line)][-3:]


def test_two_runs_with_the_same_impressions_have_paired_intervals(evaluated_run: Callable[..., Path]) -> None:
    first, second = evaluated_run("2026-01-05"), evaluated_run("2026-01-04")
    _write_predictions(first, shift=0.0)
    _write_predictions(second, shift=0.6)
    text = _compared(first, second)
    assert "Paired: both runs predicted the same 400 impressions" in text
    assert "0 labels became known in between" in text
    value, low, high = _row(text, "AUC0.7000")
    assert 0 < low < value < high
    _write_predictions(second, shift=0.0)
    assert _row(_compared(first, second), "AUC0.7000") == [0.0, 0.0, 0.0]


def test_two_runs_with_other_impressions_are_compared_without_an_interval(evaluated_run: Callable[..., Path]) -> None:
    first, second = evaluated_run("2026-01-05"), evaluated_run("2026-01-04", auc=0.6)
    _write_predictions(first, shift=0.0)
    _write_predictions(second, shift=0.0, impressions=range(100, 500))
    text = _compared(first, second)
    assert "Unpaired, no interval: the runs predicted 400 and 400 impressions, 300 of them the same." in text
    assert "+0.1000" in text
    (second / "evaluation" / "predictions.parquet").unlink()
    assert f"predictions.parquet of {second.name} is missing" in _compared(first, second)


def test_a_comparison_names_the_keys_that_differ_and_draws_both_runs_in_one_chart(
    evaluated_run: Callable[..., Path],
) -> None:
    first, second = evaluated_run("2026-01-05"), evaluated_run("2026-01-04", name="another")
    text = _compared(first, second)
    assert re.search(r"Keys that differ\s*\n*2026-01-05-0123abcd2026-01-04-0123abcd\s*nameshopanother", text)
    roc = _specs((first / "both.html").read_text(encoding="utf-8"))["roc-click"]
    assert {each.get("series") for each in _numbers(roc)} >= {first.name, second.name}


def test_a_run_is_not_compared_with_itself(evaluated_run: Callable[..., Path]) -> None:
    folder = evaluated_run()
    with pytest.raises(ValueError, match=r"--compare 2026-01-05-0123abcd is the run itself: give another run"):
        write_comparison(folder, folder, folder / "both.html")


def test_the_command_writes_the_report_where_it_says(evaluated_run: Callable[..., Path], tmp_path: Path) -> None:
    first, second = evaluated_run("2026-01-05"), evaluated_run("2026-01-04")
    said = CliRunner().invoke(app, ["report", first.name, "--workspace", str(tmp_path)])
    assert said.output == f"report: {first / 'evaluation' / 'report.html'}\n"
    assert (first / "evaluation" / "report.html").exists()
    page = tmp_path / "both.html"
    options = ["--workspace", str(tmp_path), "--compare", second.name, "--output", str(page)]
    assert CliRunner().invoke(app, ["report", first.name, *options]).exit_code == 0
    assert page.exists()


def test_a_folder_that_is_not_there_is_told(evaluated_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = evaluated_run()
    options = ["--workspace", str(tmp_path), "--output", str(tmp_path / "none" / "page.html")]
    error = CliRunner().invoke(app, ["report", folder.name, *options]).exception
    assert re.search(r"the folder .*none does not exist; make it first", str(error))
