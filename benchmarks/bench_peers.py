"""Our body against the peers' MMoE and PLE and LightGBM, on the same encoded examples of a featurized workspace.

    pip install torch-rechub==0.9.0 deepctr-torch==0.3.0 requests lightgbm==4.7.0   # in an environment of its own
    python -m benchmarks.bench_peers --config C --workspace W --seeds 5 --on test

benchmarks/peers.py says what the peers get and at which sizes. Levels, intervals and claims are those of `counterpoise
compare`: differences per seed and per resample of users, Holm over all pairs. Predictions are kept in --cache.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from benchmarks import peers
from benchmarks.peers import deepctr, rechub
from pipeline import threads
from pipeline.baselines import fit_baseline
from pipeline.compare import compare_trained
from pipeline.compare_page import sentences, terminal_table, write_compare_page
from pipeline.config import Config, load_config, parse_override
from pipeline.fit import fit_of
from pipeline.study_data import Study, load_study
from pipeline.study_training import Fitted, Material, Trained, train, train_ranker
from pipeline.workspace import Workspace, write_json

PEERS = {"torch-rechub": rechub, "deepctr-torch": deepctr}


def _peer(  # one call a training
    library: str, kind: str, sizes: str, study: Study, seed: int, cache: Path | None
) -> Trained:
    spec = study.spec("ple", seed)
    material = Material(study.training, study.validation, {"measured": study.measured})
    settings = [library, kind, sizes, study.config.model.model_dump(), study.config.training.model_dump(), seed]
    maker = PEERS[library](kind, sizes, study.config, spec, seed)
    name, code = f"{library} {kind} {sizes} seed {seed}", [Path(peers.__file__)]
    return train(name, settings, material, cache, lambda: maker(material), code=code)


def _ours(study: Study, body: str, seeds: int, cache: Path | None) -> list[Trained]:
    material = Material(study.training, study.validation, {"measured": study.measured})
    fits = {seed: fit_of(study.config.model_copy(update={"seed": seed})) for seed in range(1, seeds + 1)}
    return [train_ranker(study.spec(body, seed), fit, material, cache) for seed, fit in fits.items()]


def _lightgbm(study: Study, cache: Path | None) -> Trained:
    material, spec = Material(study.training, study.validation, {"measured": study.measured}), study.spec("linear", 1)

    def make() -> Fitted:
        return Fitted(fit_baseline("lightgbm", material.training, material.validation, spec, 1).predict)

    return train("lightgbm", ["lightgbm", spec.single, spec.numeric, spec.pooled, spec.bins], material, cache, make)


def main(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    config: Annotated[Path, typer.Option()] = Path("examples/kuairand.toml"),
    workspace: Annotated[Path, typer.Option()] = Path("workspace"),
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    on: Annotated[Literal["validation", "test"], typer.Option()] = "validation",
    sizes: Annotated[
        str, typer.Option(help="own, ours, or both; torch-rechub's own take minutes a training.")
    ] = "own,ours",
    replicates: Annotated[int, typer.Option(min=20)] = 1000,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
    run: Annotated[str | None, typer.Option()] = None,
    cache: Annotated[Path | None, typer.Option()] = None,
    output: Annotated[Path | None, typer.Option()] = None,
    page: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Train ours, the peers and LightGBM, and say which beats which."""
    settings: Config = load_config(config, dict(parse_override(text) for text in overrides or []))
    study = load_study(settings, Workspace(workspace), on=on, run=run)
    trained = {settings.model.body: _ours(study, settings.model.body, seeds, cache)}
    for library in PEERS:
        for kind in ("mmoe", "ple"):
            for chosen in sizes.split(","):
                many = [_peer(library, kind, chosen, study, seed, cache) for seed in range(1, seeds + 1)]
                trained[f"{library} {kind}, {chosen} sizes"] = many
    trained["lightgbm"] = [_lightgbm(study, cache)]
    result = compare_trained(study, trained, seeds, replicates)
    if output is not None:
        write_json(output, result)
    if page is not None:
        write_compare_page(page, result)
    console = Console(width=240)
    console.print(terminal_table(result))
    for sentence in sentences(result):
        console.print(sentence, highlight=False)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
