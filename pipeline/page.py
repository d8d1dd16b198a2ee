"""One self-contained HTML page of texts, tables and charts: no file beside it, no network, readable on a phone."""

import functools
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESOURCES = Path(__file__).parent
NUMBER = re.compile(r"-|[-+]?[\d.,]+%?( \[[^\]]*\])?|\d{4}-\d\d-\d\d")
SECURITY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Alarm:
    """A paragraph that stands out: something is wrong."""

    text: str


@dataclass(frozen=True)
class Missing:
    """What is not there, and what makes it."""

    text: str


@dataclass(frozen=True)
class Details:
    """Text with its line breaks, folded under a summary."""

    summary: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; a column of numbers, with or without an interval in brackets, is aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    """Whether only the caption shows until it is opened."""


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification; the id is unique in the page and holds letters, digits and dashes only."""

    spec: Mapping[str, Any]
    caption: str
    id: str


Block = Text | Alarm | Missing | Details | Table | Chart


@dataclass(frozen=True)
class Section:
    """A title and what stands under it, also an entry of the navigation."""

    title: str
    blocks: Sequence[Block]


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page; it is there as a whole or not at all.

    All text is escaped. When its charts are drawn, the root element has `data-drawn`: how many were.

    Raises:
        ValueError: two charts have one id, or an id holds other signs.
    """
    charts = [block for section in sections for block in section.blocks if isinstance(block, Chart)]
    _check_ids([chart.id for chart in charts])
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(_page(title, sections, charts), encoding="utf-8")
    draft.replace(path)


def embed_json(values: Any) -> str:
    """Write JSON that cannot end the script element that holds it, and refuse NaN, which JSON has not.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(values, allow_nan=False).replace("<", "\\u003c")


def anchor(title: str) -> str:
    """Return the id of a title: lower-case letters and digits joined by dashes."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower())) or "section"


def _check_ids(ids: Sequence[str]) -> None:
    for name in ids:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
            raise ValueError(f"chart id {name!r}: expected a letter, then letters, digits and dashes; see page.anchor")
        if ids.count(name) > 1:
            raise ValueError(f"chart id {name!r} occurs {ids.count(name)} times in one page: give each its own")


def _page(title: str, sections: Sequence[Section], charts: Sequence[Chart]) -> str:
    links = "".join(
        f'<a href="#section-{n}-{anchor(section.title)}">{html.escape(section.title)}</a>'
        for n, section in enumerate(sections)
    )
    body = "\n".join(_section(n, section) for n, section in enumerate(sections))
    specs = embed_json({chart.id: dict(chart.spec) for chart in charts})
    style = (RESOURCES / "page.css").read_text(encoding="utf-8")
    script = (RESOURCES / "page.js").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{SECURITY}">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1></header>
<nav>{links}</nav>
<main>
{body}
</main>
<script type="application/json" id="specs">{specs}</script>
<script>{_library() if charts else ""}</script>
<script>{script}</script>
</body>
</html>
"""


@functools.cache
def _library() -> str:
    import vl_convert  # takes 100 MiB, which a page without a chart need not have

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in bundle.lower(), "the bundle would end its element"
    return bundle


def _section(number: int, section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    name = f"section-{number}-{anchor(section.title)}"
    return f'<section id="{name}"><h2>{html.escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chart):
        caption = html.escape(block.caption)
        return f'<figure><figcaption>{caption}</figcaption><div class="chart" id="{block.id}"></div></figure>'
    if isinstance(block, Details):
        return f"<details><summary>{html.escape(block.summary)}</summary><pre>{html.escape(block.text)}</pre></details>"
    return f'<p class="{type(block).__name__.lower()}">{html.escape(block.text)}</p>'


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and n > 0 and all(NUMBER.fullmatch(row[n]) for row in table.rows)
        for n in range(len(table.columns))
    ]
    head = "".join(
        f"<th{_class(right=right)}>{html.escape(name)}</th>" for name, right in zip(table.columns, numeric, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{_class(right=right)}>{html.escape(cell)}</td>" for cell, right in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    caption = html.escape(table.caption)
    if table.folded:
        return f'<details><summary>{caption}</summary><div class="table">{inner}</div></details>'
    above = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="wide">{above}<div class="table">{inner}</div></figure>'


def _class(*, right: bool) -> str:
    return ' class="number"' if right else ""
