"""Claims on what a chart's specification holds; the browser test draws them all."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import charts

ROW = {"name": "a", "value": 0.5, "low": 0.4, "high": 0.6}


def _values(spec: charts.Spec) -> list[dict[str, Any]]:
    return [value for layer in spec["layer"] for value in layer["data"]["values"]]


def _channels(spec: charts.Spec, channel: str) -> Iterator[dict[str, Any]]:
    yield from (layer["encoding"][channel] for layer in spec["layer"] if channel in layer["encoding"])


def test_one_series_has_no_legend_and_two_have_one_in_their_order() -> None:
    one, two = (charts.interval_dots({name: [ROW] for name in names}, x="AUC") for names in (["b"], ["b", "a"]))
    assert {channel["legend"] is None for channel in _channels(one, "color")} == {True}
    assert [channel["sort"] for channel in _channels(two, "color")] == [["b", "a"]] * 2


def test_names_from_the_data_are_values_and_never_fields() -> None:
    name = "datum['x'].y"
    row = {**ROW, "name": name}
    specs = [
        charts.interval_dots({name: [row]}, x=""),
        charts.interval_columns({name: [row]}, x="", y="", reference=1.0),
        charts.bars({name: [row]}, x="", y=""),
        charts.lines({name: [[0.0, 1.0]]}, x="", y=""),
        charts.heat_map([name], [name], [[1.0]], titles=("", "", "")),
    ]
    for spec in specs:
        assert any(name in value.values() for value in _values(spec))
        fields = [
            channel["field"] for layer in spec["layer"] for channel in layer["encoding"].values() if "field" in channel
        ]
        assert name not in fields


def test_the_diagonal_of_a_calibration_reaches_the_highest_bound() -> None:
    row = {"predicted": 0.2, "observed": 0.3, "low": 0.1, "high": 0.7}
    diagonal = charts.calibration({"click": [row]})["layer"][0]
    assert [value["y"] for value in diagonal["data"]["values"]] == [0.0, 0.7]


def test_bars_stand_side_by_side_only_where_two_series_share_a_name() -> None:
    apart = charts.bars({"train": [{"name": "1", "value": 1}], "test": [{"name": "2", "value": 1}]}, x="", y="")
    shared = charts.bars({"train": [{"name": "1", "value": 1}], "test": [{"name": "1", "value": 1}]}, x="", y="")
    assert not list(_channels(apart, "xOffset"))
    assert list(_channels(shared, "xOffset"))


def test_an_empty_cell_of_a_heat_map_is_left_out_and_many_columns_carry_no_numbers() -> None:
    spec = charts.heat_map(["r"], ["a", "b"], [[0.5, None]], titles=("", "", ""))
    assert _values(spec) == [{"row": "r", "column": "a", "value": 0.5}] * 2
    wide = charts.heat_map(["r"], [str(n) for n in range(13)], [[0.5] * 13], titles=("", "", ""))
    assert len(wide["layer"]) == 1


def test_epochs_are_marked_at_whole_numbers_only() -> None:
    spec = charts.lines({"a": [[1, 0.5], [2, 0.4]], "b": [[3, 0.2]]}, x="epoch", y="loss", marked=True)
    assert [channel["axis"]["values"] for channel in _channels(spec, "x")] == [[1, 2, 3]]


def test_a_histogram_has_one_edge_more_than_counts() -> None:
    with pytest.raises(AssertionError, match="one edge more than counts"):
        charts.histogram([0.0, 1.0], {"a": [1, 2]}, x="", y="")
