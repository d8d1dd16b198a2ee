"""Vega-Lite specifications of the charts that reports draw: plain values in, a plain dict out.

Fields have fixed names, so that no name from the data is read as an expression; every spec fills its container's width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Points = Sequence[Sequence[float]]

HEIGHT = 260
ROW_HEIGHT = 22
LEGEND_HEIGHT = 80
DARK = 0.6
"""Value of a heat map from which its number is white."""
FEW = 24
"""Cells of a heat map's row up to which each carries its number."""


def lines(
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    reference: Points = (),
    scales: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
    marked: bool = False,
) -> Spec:
    """Draw one line a series.

    Args:
        series: points [x, y] by name, in the order in which the line joins them.
        x: title of the axis, with its unit.
        y: likewise.
        reference: points of a dashed line to compare with; none by default.
        scales: Vega-Lite scales of x and y.
        marked: draw the points too, and count x in whole numbers.
    """
    values = [
        {"x": point[0], "y": point[1], "series": name, "order": n}
        for name, points in series.items()
        for n, point in enumerate(points)
    ]
    axis = (
        {
            "values": sorted({point[0] for points in series.values() for point in points}),
            "format": "d",
            "labelOverlap": True,
        }
        if marked
        else {}
    )
    encoding = {
        "x": _number("x", x, {"zero": False, **scales[0]}) | {"axis": axis},
        "y": _number("y", y, {"zero": False, **scales[1]}),
        "order": {"field": "order", "type": "quantitative"},
        **_color("series", list(series)),
        "tooltip": _tooltip({"series": "", "x": x, "y": y}),
    }
    drawn = {"mark": {"type": "line", "point": marked}, "data": {"values": values}}
    return _spec([*_reference(reference), drawn | {"encoding": encoding}])


def calibration(series: Mapping[str, Sequence[Mapping[str, float]]]) -> Spec:
    """Draw observed over predicted rates with intervals, beside the diagonal of a perfect calibration.

    Every row of a series has predicted, observed, low, high; rates within [0, 1].
    """
    values = [_interval(row, row["observed"]) | {"series": name, "x": row["predicted"]} for name, row in _rows(series)]
    top = max((max(row["high"], row["x"]) for row in values), default=1.0)
    scale = {"domain": [0, top * 1.04], "nice": False}
    base = {"data": {"values": values}}
    x = _number("x", "mean predicted probability", scale)
    y, color = _number("value", "observed rate", scale), _color("series", list(series))
    tooltip = _tooltip({"series": "", "x": "predicted", "value": "observed", "low": "low", "high": "high"})
    bounds = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, **color}
    points = {"x": x, "y": y, **color, "tooltip": tooltip}
    return _spec(
        [
            *_reference([[0.0, 0.0], [top, top]]),
            base | {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": bounds},
            base | {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.6}, "encoding": points},
            base | {"mark": {"type": "point", "filled": True}, "encoding": points},
        ]
    )


def interval_columns(series: Mapping[str, Sequence[Mapping[str, Any]]], *, x: str, y: str, reference: float) -> Spec:
    """Draw values with intervals over ordered categories, beside a horizontal line at the reference.

    Every row of a series has name, value, low, high. Categories stand in the order of the first series.
    """
    values = [_interval(row, row["value"]) | {"series": name, "name": row["name"]} for name, row in _rows(series)]
    order = list(dict.fromkeys(row["name"] for row in values))
    labels = {"labelAngle": 0 if len(order) <= FEW // 2 else -45, "labelOverlap": True}
    across = {"field": "name", "type": "ordinal", "sort": order, "title": x, "axis": labels}
    shared = {"x": across, "xOffset": {"field": "series", "sort": list(series)}, **_color("series", list(series))}
    y_axis = _number("value", y, {"zero": False})
    tooltip = _tooltip({"series": "", "name": x, "value": y, "low": "low", "high": "high"})
    base = {"data": {"values": values}}
    bounds = shared | {"y": y_axis | {"field": "low"}, "y2": {"field": "high"}}
    return _spec(
        [
            {"data": {"values": [{"y": reference}]}, "mark": _line(), "encoding": {"y": _number("y", y, {})}},
            base | {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": bounds},
            base | {"mark": {"type": "point"}, "encoding": shared | {"y": y_axis, "tooltip": tooltip}},
        ]
    )


def interval_dots(
    series: Mapping[str, Sequence[Mapping[str, Any]]], *, x: str, reference: float | None = 0.0, name: str = ""
) -> Spec:
    """Draw one row a name: a dot at its value and a line from low to high, beside a vertical line at the reference.

    Every row of a series has name, value, low, high. Rows stand in the order of the first series, each series a
    little lower than the one before.
    """
    values = [_interval(row, row["value"]) | {"series": label, "name": row["name"]} for label, row in _rows(series)]
    order = list(dict.fromkeys(row["name"] for row in values))
    down = _names("name", order, name)
    shared = {"y": down, "yOffset": {"field": "series", "sort": list(series)}, **_color("series", list(series))}
    x_axis = _number("value", x, {"zero": False})
    tooltip = _tooltip({"series": "", "name": name or "row", "value": x, "low": "low", "high": "high"})
    base = {"data": {"values": values}}
    bounds = shared | {"x": x_axis | {"field": "low"}, "x2": {"field": "high"}}
    marks: list[Spec] = [
        base | {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": bounds},
        base | {"mark": {"type": "point"}, "encoding": shared | {"x": x_axis, "tooltip": tooltip}},
    ]
    if reference is not None:
        at = {"data": {"values": [{"x": reference}]}, "mark": _line(), "encoding": {"x": _number("x", x, {})}}
        marks.insert(0, at)
    return _spec(marks, height=max(1, len(order)) * max(ROW_HEIGHT, 13 * len(series)))


def histogram(edges: Sequence[float], counts: Mapping[str, Sequence[float]], *, x: str, y: str) -> Spec:
    """Draw counts between edges as bars; several series lie on each other, half transparent.

    There is one edge more than counts.
    """
    assert all(len(edges) == len(many) + 1 for many in counts.values()), "a histogram has one edge more than counts"
    values = [
        {"low": edges[n], "high": edges[n + 1], "y": count, "series": name}
        for name, many in counts.items()
        for n, count in enumerate(many)
    ]
    encoding = {
        "x": _number("low", x, {"nice": False, "domain": [edges[0], edges[-1]]}),
        "x2": {"field": "high"},
        "y": _number("y", y, {"zero": True}) | {"stack": None, "axis": {"tickMinStep": 1}},
        "y2": {"datum": 0},
        **_color("series", list(counts)),
        "tooltip": _tooltip({"series": "", "low": "from", "high": "to", "y": y}),
    }
    mark = {"type": "rect", "opacity": 1 if len(counts) == 1 else 0.55}
    return _spec([{"data": {"values": values}, "mark": mark, "encoding": encoding}])


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    titles: tuple[str, str, str],
) -> Spec:
    """Draw a matrix of values within [0, 1] as colored cells, with their numbers where a row has few.

    Args:
        rows: names of the rows, top to bottom.
        columns: names of the columns.
        values: one list a row; None leaves a cell empty.
        titles: of the rows, the columns and the color.
    """
    cells = [
        {"row": row, "column": column, "value": value}
        for row, many in zip(rows, values, strict=True)
        for column, value in zip(columns, many, strict=True)
        if value is not None
    ]
    angle = 0 if sum(len(column) for column in columns) <= FEW else -40
    x = {"field": "column", "type": "nominal", "sort": list(columns), "title": titles[1]}
    shared = {"y": _names("row", rows, titles[0]), "x": x | {"axis": {"labelAngle": angle}}}
    scale = {"scheme": "blues", "domain": [0, 1]}
    color = _number("value", titles[2], scale) | {
        "legend": {"orient": "right", "gradientLength": LEGEND_HEIGHT, "title": None}
    }
    tooltip = _tooltip({"row": titles[0], "column": titles[1], "value": titles[2]})
    base = {"data": {"values": cells}}
    layers: list[Spec] = [base | {"mark": {"type": "rect"}, "encoding": shared | {"color": color, "tooltip": tooltip}}]
    if len(columns) <= FEW // 2:
        ink = {"test": f"datum.value > {DARK}", "value": "white"}
        number = {"field": "value", "type": "quantitative", "format": ".2f"}
        written = {"text": number, "color": {"condition": ink, "value": "#1c2430"}}
        layers.append(base | {"mark": {"type": "text", "fontSize": 11}, "encoding": shared | written})
    return _spec(layers, height=max(LEGEND_HEIGHT, 26 * len(rows)))


def bars(series: Mapping[str, Sequence[Mapping[str, Any]]], *, x: str, y: str, number_format: str = "~s") -> Spec:
    """Draw one group of vertical bars a name, one bar a series; every row has name and value.

    Where no name occurs in two series, its one bar takes the whole width.
    """
    values = [{"series": label, "name": row["name"], "value": row["value"]} for label, row in _rows(series)]
    order = list(dict.fromkeys(row["name"] for row in values))
    labels = {"labelAngle": 0 if sum(map(len, order)) <= FEW else -45, "labelLimit": 110, "labelOverlap": True}
    encoding = {
        "x": {"field": "name", "type": "nominal", "sort": order, "title": x, "axis": labels},
        **({"xOffset": {"field": "series", "sort": list(series)}} if len(order) < len(values) else {}),
        "y": _number("value", y, {}) | {"axis": {"format": number_format}, "stack": None},
        **_color("series", list(series)),
        "tooltip": _tooltip({"series": "", "name": x or "name", "value": y}),
    }
    return _spec([{"data": {"values": values}, "mark": {"type": "bar"}, "encoding": encoding}])


def _spec(layers: list[Spec], height: int = HEIGHT) -> Spec:
    return {"width": "container", "height": height, "layer": layers}


def _rows(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, row) for name, many in series.items() for row in many]


def _interval(row: Mapping[str, Any], value: float) -> dict[str, Any]:
    return {"value": value, "low": row["low"], "high": row["high"]}


def _number(field: str, title: str, scale: Mapping[str, Any]) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": dict(scale)}


def _names(field: str, order: Sequence[str], title: str) -> Spec:
    return {"field": field, "type": "nominal", "sort": list(order), "title": title or None}


def _color(field: str, order: Sequence[str]) -> Spec:
    """Color by series; one series needs neither colors nor a legend."""
    legend = None if len(order) < 2 else {"title": None, "columns": 2}  # noqa: PLR2004  # one is none to tell apart
    return {"color": {"field": field, "type": "nominal", "sort": list(order), "legend": legend}}


def _tooltip(titles: Mapping[str, str]) -> list[Spec]:
    """Show fields under their titles; a field of text is told by its name."""
    text = {"series", "name", "row", "column"}
    return [
        {"field": field, "title": title or "of", "type": "nominal"}
        if field in text
        else {"field": field, "title": title, "type": "quantitative", "format": ".4~g"}
        for field, title in titles.items()
    ]


def _reference(points: Points) -> list[Spec]:
    values = [{"x": x, "y": y} for x, y in points]
    encoding = {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}}
    return [{"data": {"values": values}, "mark": _line("line"), "encoding": encoding}] if values else []


def _line(kind: str = "rule") -> Spec:
    return {"type": kind, "style": "reference"}
