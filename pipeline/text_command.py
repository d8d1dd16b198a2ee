"""The command `text-classify`: multi-task text classification on a table of one's own."""

from pathlib import Path
from typing import Annotated

import typer


def text_classify(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    table: Annotated[Path, typer.Option(help="Table: .parquet, .csv or .jsonl.")],
    text: Annotated[str, typer.Option(help="Column of the texts.")],
    label: Annotated[list[str], typer.Option(help="Label column; repeat it for further tasks.")],
    output: Annotated[Path, typer.Option(help="New folder for result.json and model/.")],
    time: Annotated[
        str | None, typer.Option(help="Column of times to split by; default: a hash of the text decides.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each model, with seeds 1, 2, ...")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows; the best one is kept.")] = 60,
    replicates: Annotated[int, typer.Option(min=20, help="Resamples of texts.")] = 1000,
) -> None:
    """Train one encoder with a classifier a label column, and separate classifiers, and compare them on later rows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pipeline.significance import few_replicates
    from pipeline.text_classify import TextStudy, classified_rows, classify

    study = TextStudy(
        table=table, text=text, labels=label, time=time, seeds=seeds, epochs=epochs, replicates=replicates
    )
    result = classify(study, output)
    rows = classified_rows(result)
    parts = ", ".join(f"{count:,} {name}" for name, count in result["rows"].items())
    title = f"{result['table']}: {parts} rows, split by {result['split_by']}"
    shown = Table(title=escape(title), title_justify="left")
    for column in rows.columns:
        shown.add_column(column, overflow="fold")
    for row in rows.iter_rows():
        shown.add_row(*map(escape, row))
    console = Console(width=160)
    console.print(shown)
    for line in few_replicates(replicates, rows.height):
        console.print(line, soft_wrap=True, highlight=False)
    cost = ", ".join(
        f"{name} {result['parameters'][name]:,} weights {result['seconds'][name]:.1f} s" for name in result["seconds"]
    )
    console.print(
        f"left out: {result['without_words']:,} rows without a word; {result['seeds']} seeds: {cost}\n{output}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
