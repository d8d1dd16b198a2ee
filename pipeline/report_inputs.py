"""Sections of the HTML report about what a run was made from: data, versions, configuration, stages."""

from pipeline import charts
from pipeline.page import Block, Chart, Details, Missing, Section, Table, Text
from pipeline.report_quality import Runs, Values, having, missing, sentence_case
from pipeline.run_files import RunFiles

PARTS = ("train", "validation", "test")


def data_section(runs: Runs) -> Section:
    """Draw impressions and rates of every day, and tabulate what ingest refused."""
    blocks = missing(runs, "data", "the counts per day")
    for number, (name, data) in enumerate(having(runs, "data").items()):
        of = f", {name}" if len(runs) > 1 else ""
        blocks += _day_charts(number, of, data["days"])
        quarantine = data.get("quarantine") or {}
        rows = [[reason, f"{count:,}"] for reason, count in sorted(quarantine.items(), key=lambda pair: -pair[1])]
        blocks.append(
            Table(["reason", "rows"], rows, f"Quarantine{of}") if rows else Text(f"Quarantine{of}: no row was refused.")
        )
        if (unattributed := data.get("unattributed")) is not None:
            blocks.append(Text(f"Events that belong to no impression{of}: {unattributed:,}."))
    return Section("Data", blocks)


def _day_charts(number: int, of: str, days: list[Values]) -> list[Block]:
    impressions = _by_part(days, [float(day["impressions"]) for day in days])
    clicks = _by_part(days, [day["clicks"] / day["impressions"] if day["impressions"] else 0.0 for day in days])
    conversions = _by_part(days, [day["conversions"] / day["clicks"] if day["clicks"] else 0.0 for day in days])
    drawn = {
        "impressions": (impressions, "impressions", "~s"),
        "click-rate": (clicks, "clicks / impressions", ".1%"),
        "conversion-rate": (conversions, "conversions / clicks", ".1%"),
    }
    return [
        Chart(
            charts.bars(series, x="day", y=y, number_format=form), f"{sentence_case(y)} per day{of}", f"{key}-{number}"
        )
        for key, (series, y, form) in drawn.items()
    ]


def _by_part(days: list[Values], values: list[float]) -> dict[str, list[Values]]:
    named = [(day["part"], {"name": str(day["day"]), "value": value}) for day, value in zip(days, values, strict=True)]
    return {part: rows for part in PARTS if (rows := [row for owner, row in named if owner == part])}


def versions_section(runs: Runs) -> Section:
    """Tabulate versions of packages, tables, code and model, and what each stage took."""
    blocks: list[Block] = missing(runs, "versions", "the list of versions")
    versions = {name: _flat_versions(run) for name, run in runs.items()}
    blocks.append(side_by_side(versions, "Packages, tables, code and model", only_differences=False))
    for name, run in runs.items():
        blocks += _stages(name, run)
    return Section("Versions", blocks)


def _flat_versions(run: RunFiles) -> dict[str, str]:
    record = {key: value for key, value in (run.register or {}).items() if key in {"git_commit", "config_digest"}}
    found = flatten(run.evaluation.get("versions") or {}) | {"run": run.name}
    if run.register is not None:
        found["registered version"] = str(run.register["version"])
    if run.summary is not None:
        found["digest of the rows and weights"] = str(run.summary["digest"])
    return {key: str(value) for key, value in (record | found).items()}


def _stages(name: str, run: RunFiles) -> list[Block]:
    if run.summary is None:
        return [Missing(f"Seconds of the stages of {name} are missing: `counterpoise run` writes them at its end.")]
    rows = [
        [stage, f"{took['rows_in']:,}", f"{took['rows_out']:,}", f"{took['seconds']:.1f}", f"{took['peak_mib']:,.0f}"]
        for stage, took in run.summary["stages"].items()
    ]
    return [Table(["stage", "rows in", "rows out", "seconds", "peak MiB"], rows, f"Stages of {name}")]


def config_section(runs: Runs) -> Section:
    """Show every key of the configuration, folded; of two runs, first the keys that differ."""
    configs = {name: {key: str(value) for key, value in flatten(run.config).items()} for name, run in runs.items()}
    blocks: list[Block] = []
    if len(runs) > 1:
        blocks.append(side_by_side(configs, "Keys that differ", only_differences=True))
    for name, config in configs.items():
        if config:
            text = "\n".join(f"{key} = {value}" for key, value in config.items())
            blocks.append(Details(f"Configuration of {name} ({len(config)} keys)", text))
        else:
            blocks.append(Missing(f"The configuration of {name} is missing: evaluate it again with this version."))
    return Section("Configuration", blocks)


def side_by_side(values: dict[str, dict[str, str]], caption: str, *, only_differences: bool) -> Table:
    """Tabulate keys by run; a key that a run lacks has a dash."""
    keys = dict.fromkeys(key for found in values.values() for key in found)
    rows = [[key, *(found.get(key, "-") for found in values.values())] for key in keys]
    if only_differences:
        rows = [row for row in rows if len(set(row[1:])) > 1]
    return Table(["", *values], rows, caption if rows else f"{caption}: none")


def flatten(values: Values, prefix: str = "") -> Values:
    """Return nested tables as dotted keys; lists stay whole."""
    flat: Values = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
