"""What a study trains and measures on: the encoded examples of a featurized run, read once for many models."""

import datetime as dt
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import polars as pl

from features.encoding import Encoder, load_encoder
from features.plan import FeaturePlan
from models.ranker import RankerSpec
from pipeline import tables
from pipeline.config import Config
from pipeline.dataset import Examples, ranker_spec, read_examples
from pipeline.evaluate import Impressions, impressions_of
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, run_folder, table_versions
from pipeline.label_sums import check_classes, total
from pipeline.maturity import maturity_of
from pipeline.split import Days
from pipeline.workspace import Workspace

Part = Literal["validation", "test"]
ALL_SHARED = {"moe", "mmoe"}


@dataclass(frozen=True)
class Study:
    """Examples of one run, and the day that models are measured on."""

    config: Config
    plan: FeaturePlan
    encoder: Encoder
    training: list[Examples]
    """One a day, with the labels and masks that the night before the test day would train on."""
    validation: list[Examples]
    """Likewise: what selects an epoch."""
    measured: list[Examples]
    """The validation or the test days, with the labels as they are known today."""
    days: Days
    on: Part
    """Which days `measured` holds."""
    source: str
    """Run and table version that the examples were read from: equal sources hold equal rows."""

    def spec(self, body: str, seed: int) -> RankerSpec:
        """Return the spec of a body with the configuration's sizes.

        A mixture without experts of a task alone (moe, mmoe) gets as many shared ones as the others have in all:
        with the few that they share it would compare sizes, not bodies.
        """
        spec = ranker_spec(self.config, self.plan, self.encoder, body, seed)
        if body in ALL_SHARED:
            return replace(spec, experts=spec.experts + spec.heads * spec.task_experts)
        return spec

    def measured_days(self) -> list[dt.date]:
        """Return the days of `measured`."""
        return self.days.test if self.on == "test" else self.days.validation

    def rows(self) -> Impressions:
        """Return labels and users of the measured days."""
        return impressions_of(self.measured)


def load_study(config: Config, workspace: Workspace, on: Part = "validation", run: str | None = None) -> Study:
    """Read the training, validation and measured days of a featurized run.

    Choices belong on the validation day, which is the default: a test day that is looked at twice is none.

    Args:
        config: how the models are built and trained; its features and labels are those of the run.
        workspace: with tables/examples.
        on: 'validation' or 'test', the days to measure on.
        run: name of the run folder whose encoder and examples are read; by default the configuration's own. A
            study that changes only [model] or [training] reads the run that was featurized before the change.

    Raises:
        ValueError: featurize has not run, the run has other features than the configuration, or a task has one class
            only in training.
    """
    days, plan = days_of(config, workspace, None), plan_of(config)
    folder = run_folder(config, workspace, days) if run is None else workspace.run(run)
    version = table_versions(folder)["examples"]
    encoder = load_encoder(folder / "features" / "encoder.json")
    _check_features(plan, encoder, folder)
    spec, table = ranker_spec(config, plan, encoder, "linear", config.seed), workspace.table("examples")
    fitted = tables.scan(table, version).filter(pl.col("date").is_in([*days.train, *days.validation]))
    maturity = maturity_of(config, fitted, plan.start_of(days.test[0]))
    training = [read_examples(table, version, day, spec, maturity) for day in days.train]
    check_classes(total(day.label_sums() for day in training), maturity, days)
    return Study(
        config=config,
        plan=plan,
        encoder=encoder,
        training=training,
        validation=[read_examples(table, version, day, spec, maturity) for day in days.validation],
        measured=[
            read_examples(table, version, day, spec, None) for day in (days.test if on == "test" else days.validation)
        ],
        days=days,
        on=on,
        source=f"{folder.name} examples@{version} {on}",
    )


def featurized_run(config: Config, featurized: Config, workspace: Workspace) -> str:
    """Return the run whose examples a study reads: the configuration's own where it has been featurized.

    Args:
        config: the studied configuration.
        featurized: the same without what a study changes, such as [model] and [training]; neither matters to features.
        workspace: with runs/.
    """
    days = days_of(config, workspace, None)
    own, other = (run_folder(one, workspace, days) for one in (config, featurized))
    return other.name if (other / "features").exists() and not (own / "features").exists() else own.name


def _check_features(plan: FeaturePlan, encoder: Encoder, folder: Path) -> None:
    """Refuse an encoder of other features.

    Raises:
        ValueError: the encoder lacks features of the plan.
    """
    encoded = {*encoder.vocabularies, *encoder.knots, *encoder.lists}
    if missing := sorted({*plan.categorical(), *plan.numeric(), *plan.multi(), *plan.sequences()} - encoded):
        raise ValueError(
            f"run {folder.name} has no encoding of {missing}: the configuration declares other features; run "
            "`counterpoise featurize` with it, or name a run of the same features with --run"
        )
