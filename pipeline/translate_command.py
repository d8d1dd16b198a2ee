"""The command that trains translators on a table of texts: translate-train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def translate_train(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    table: Annotated[Path, typer.Option(help="CSV, Parquet or JSON-lines file of texts, tokens apart by spaces.")],
    source: Annotated[str, typer.Option(help="Column that is translated.")],
    target: Annotated[list[str], typer.Option(help="Column that it is translated into; two or more.")],
    output: Annotated[Path, typer.Option(help="New folder for the joint model and the figures.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training pairs.")] = 30,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each model, with seeds 1, 2, ...")] = 3,
    replicates: Annotated[int, typer.Option(min=20, help="Resamples of sources.")] = 1000,
) -> None:
    """Translate a column into several by one encoder with a decoder each, held against a model each at equal cost."""
    from rich.console import Console

    from pipeline.significance import few_replicates
    from pipeline.translate import Translation, train_translators

    result = train_translators(Translation(table, source, target, epochs, seeds, replicates), output)
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=160)).print(_table(result))
    for line in few_replicates(replicates, sum(map(len, result["metrics"].values()))):
        typer.echo(line)
    typer.echo(f"joint model and figures: {output}")


def _table(result: dict[str, Any]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    pairs = result["pairs"]
    shown = Table(title=f"{pairs['training']:,} pairs to train, {pairs['test']:,} to test, {result['seeds']} seeds")
    for name in ("target", "metric", "joint", "separate", "difference", "p (Holm)"):
        shown.add_column(name)
    for target, metrics in result["metrics"].items():
        for metric, found in metrics.items():
            figures = [_text(found[name]) for name in ("joint", "separate", "difference")]
            shown.add_row(escape(target), metric, *figures, f"{found['difference']['p_holm']:.3f}")
    return shown


def _text(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"
