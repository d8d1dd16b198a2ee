"""The section of the HTML report about the gate: every check with its figures, its interval and its answer."""

from typing import Any

from pipeline.page import Alarm, Block, Section, Table, Text
from pipeline.report_quality import Runs

COLUMNS = ("check", "challenger", "held against", "difference [95 %]", "allowed", "adjusted p", "answer")
ORDER = ("failed", "warned", "not measured", "passed")


def promotion_section(runs: Runs) -> Section:
    """Tabulate the checks of every registered run, those that failed first; empty where none was registered."""
    blocks: list[Block] = []
    for name, run in runs.items():
        found = run.register or {}
        checks = sorted(found.get("decision_checks", []), key=lambda check: ORDER.index(check["verdict"]))
        if checks:
            kind = Text if found["promoted"] else Alarm
            blocks.append(kind(f"Version {found['version']}: {found['decision']}."))
            caption = f"Checks of {name}, held against {found['decision_reference']}"
            blocks.append(Table(COLUMNS, [_row(check) for check in checks], caption))
    return Section("Promotion", blocks)


def _row(check: dict[str, Any]) -> list[str]:
    single = check["difference"] is None  # a figure that is held against bounds has an interval of its own
    return [
        check["name"],
        _figure(check["challenger"], check if single else {}),
        _figure(check["reference"], {}),
        "-" if single else _figure(check["difference"], check, sign="+"),
        check["allowed"] or "-",
        "-" if check["p_holm"] is None else f"{check['p_holm']:.3g}",
        check["verdict"] if check["p_holm"] is not None else f"{check['verdict']}: {check['reason']}",
    ]


def _figure(value: float | None, bounds: dict[str, Any], sign: str = "") -> str:
    if value is None:
        return "-"
    low, high = bounds.get("low"), bounds.get("high")
    return f"{value:{sign}.4f}" + ("" if low is None else f" [{low:{sign}.4f}, {high:{sign}.4f}]")
