"""Sections of the HTML report about the ranked lists: what they find, and whom they show."""

from pipeline import charts
from pipeline.page import Block, Chart, Section, Table
from pipeline.report_quality import Runs, defined, having, missing

LISTS = {
    "ranked": "retrieval",
    "candidates before ranking": "candidate_retrieval",
    "most popular items": "popular_retrieval",
}


def retrieval_section(runs: Runs) -> Section:
    """Draw the recall of the lists by their length, beside unranked candidates and the most popular items."""
    blocks: list[Block] = missing(runs, "retrieval", "the recall of the lists")
    for label in ("click", "conversion"):
        series = {
            (f"{lists}, {name}" if len(runs) > 1 else lists): [
                row
                for k, value in run.evaluation[key]["recall"].get(label, {}).items()
                for row in defined(value, str(k))
            ]
            for name, run in runs.items()
            for lists, key in LISTS.items()
            if run.evaluation.get(key)
        }
        if any(series.values()):
            spec = charts.interval_columns(series, x="length of the list, k", y="recall", reference=0.0)
            blocks.append(Chart(spec, f"Recall@k of next-day {label}s", f"recall-{label}"))
    return Section("Lists", [*blocks, *_retrieval_by_popularity(runs), *_exposure(runs), *_list_counts(runs)])


def _retrieval_by_popularity(runs: Runs) -> list[Block]:
    """Draw the recall of each decile of the clicked items; of two runs that at the longest list only."""
    found = having(runs, "retrieval_by_popularity")
    lengths = sorted({int(k) for rows in found.values() for row in rows for k in row["recall"]})
    series = {
        (f"k = {k}" if len(runs) == 1 else name): [
            drawn for row in rows for drawn in defined(row["recall"].get(str(k)), str(row["decile"]))
        ]
        for name, rows in found.items()
        for k in (lengths if len(runs) == 1 else lengths[-1:])
    }
    if not any(series.values()):
        return missing(runs, "retrieval_by_popularity", "the recall by popularity")
    at = "" if len(runs) == 1 else f"@{lengths[-1]}"
    spec = charts.interval_columns(series, x="decile of the item's earlier impressions", y=f"recall{at}", reference=0.0)
    return [Chart(spec, f"Recall{at} of next-day clicks by popularity of the item", "recall-by-popularity")]


def _exposure(runs: Runs) -> list[Block]:
    exposure = having(runs, "exposure")
    blocks = missing(runs, "exposure", "the exposure of items")
    if exposure:
        unit = {"domain": [0, 1], "nice": False}
        spec = charts.lines(
            {name: values["lorenz"] for name, values in exposure.items()},
            x="share of items, least shown first",
            y="share of exposure",
            reference=[[0, 0], [1, 1]],
            scales=(unit, unit),
        )
        blocks.append(Chart(spec, "Lorenz curve of exposure; the dashed line shows all items alike", "lorenz"))
    return blocks


def _list_counts(runs: Runs) -> list[Block]:
    rows = [
        [
            name,
            str(lists["scored_for"]),
            f"{lists['users']:,}",
            f"{lists['items']:,}",
            f"{lists['coverage']:.1%}",
            f"{lists['gini']:.3f}",
        ]
        for name, lists in having(runs, "lists").items()
    ]
    columns = ["lists of", "for", "users", "available items", "coverage", "Gini of exposure"]
    return [Table(columns, rows, "Coverage: share of the available items that any list shows")]
