"""The section of the HTML report about item texts and candidate sources: what is used, why, and what it adds."""

from pipeline.page import Block, Missing, Section, Table, Text
from pipeline.report import interval
from pipeline.report_quality import Runs, Values

TITLES = {"two_towers": "two towers", "sequence": "sequences", "popular": "popular items"}
TOWERS_ALONE = (
    "The two towers fill all candidates, and popular items what stays empty. retrieval.sources adds others: sequences "
    "and popular items in the same places gained about 0.01 recall at 100 alike on KuaiRand, nothing of it after "
    "ranking, and lost expected conversions on the simulator (benchmarks/results/2026-11-28-sequence.md), so they are "
    "off by default."
)
NO_TEXT = (
    "No text encoder of items is used: beside a title's words its vector cost 0.0026 click AUC on items younger than "
    "two days (benchmarks/results/2026-11-28-text.md); text.column turns it on."
)


def sources_section(runs: Runs) -> Section:
    """Tell for each run what its model's sources found of the test day, and what would be missed without them."""
    blocks: list[Block] = []
    for name, run in runs.items():
        if "sources" not in run.evaluation:
            continue  # evaluated before there were sources
        found, of = run.evaluation["sources"], f", {name}" if len(runs) > 1 else ""
        column = run.config["text"]["column"]
        text = NO_TEXT if column is None else f"The text encoder's vector of {column} is a feature of items."
        blocks.append(Text(f"{text}{f' ({name})' if of else ''}"))
        if found is None:
            blocks.append(Text(f"{TOWERS_ALONE}{f' ({name})' if of else ''}"))
            continue
        if not found["users"]:
            blocks.append(Missing(f"Nobody clicked on the test day: what each source adds is not measured{of}."))
            continue
        blocks.append(
            Text(
                f"Places were learned on {found['learned_on']} and are measured on {found['users']:,} users "
                f"that clicked on the test day{of}. Without: the recall less the recall where the other sources fill "
                f"its places.{_left_out(found)}"
            )
        )
        blocks += [_table(found, step, of) for step in ("candidates", "lists")]
    return Section("Item texts and candidate sources", blocks)


def _left_out(found: Values) -> str:
    if "sequence" not in found or "left_out" not in found["sequence"]:
        return ""
    told = " and ".join(f"{count:,} {label}s" for label, count in found["sequence"]["left_out"].items())
    return f" Sequences did not learn {told} on items that were no longer available."


def _table(found: Values, step: str, of: str) -> Table:
    told = found[step]
    labels = list(told["added"])
    columns = ["source", "places given", "share of places", "alone"]
    columns += [f"{label}s {what}" for label in labels for what in ("hit", "alone", f"recall@{told['k']} - without")]
    rows = []
    for name in found["names"]:
        share, cells = told["share"][name], [TITLES[name], str(found["quotas"][name])]
        cells += [f"{share['found']:.1%}", f"{share['alone']:.1%}"]
        for label in labels:
            hits = told["added"][label][name]
            cells += [str(hits["hits"]), str(hits["alone"]), interval(told["without"][label][name])]
        rows.append(cells)
    title = {"candidates": "Candidates before ranking", "lists": "Ranked lists"}[step]
    return Table(columns, rows, f"{title}: what each source found{of}")
