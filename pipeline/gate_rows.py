"""The test impressions as a run's model and what it is held against predict them, with what is known of each."""

import datetime as dt
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encoding import encode
from pipeline import tables
from pipeline.calibrate import corrected_maturity
from pipeline.config import Config
from pipeline.dataset import Examples, examples_from, without_tasks
from pipeline.evaluate import OUTPUT_OF, impressions_of, popularity_rates
from pipeline.example_tasks import KEPT
from pipeline.featurize import run_folder, table_versions
from pipeline.fit import PREDICT_ROWS
from pipeline.gate_checks import Trials
from pipeline.maturity import Maturity
from pipeline.metrics import Floats
from pipeline.scoring import Bundle
from pipeline.split import Days
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Tested:
    """The test days as two models predict them.

    Attributes:
        frames: each day's impressions, in order.
        users: (N,) integer codes.
        user_ids: the id of each code.
        trials: by task the rows that may be counted (N,), and what is known and predicted of all rows.
    """

    frames: list[pl.DataFrame]
    users: NDArray[np.int64]
    user_ids: pl.Series
    trials: dict[str, tuple[NDArray[np.bool_], Trials]]

    def of(self, task: str, among: NDArray[np.bool_] | None = None) -> Trials:
        """Return a task's rows, of all impressions or among those of a mask (N,)."""
        rows, trials = self.trials[task]
        return trials.of(rows if among is None else rows & among)


def predict_test_days(
    config: Config, workspace: Workspace, days: Days, challenger: Bundle, champion: Bundle | None
) -> Tested:
    """Predict the raw test impressions with both models, or with the challenger and the popularity of items."""
    folder = run_folder(config, workspace, days)
    maturity = _maturity(config, workspace, folder, days)
    examples = _examples(folder, days, challenger, maturity)
    frames = [day.frame for day in examples]
    own = _outputs(challenger, examples)
    if champion is None:
        pairs = zip(days.test, frames, strict=True)
        theirs = np.concatenate([popularity_rates(config, workspace, date, frame) for date, frame in pairs])
    else:
        theirs = _outputs(champion, _examples(folder, days, champion, maturity))
    users = impressions_of(examples).users
    ids = pl.concat([frame["user_id"] for frame in frames]).unique().sort()
    return Tested(frames, users, ids, _trials(examples, users, own, theirs))


def _examples(folder: Path, days: Days, bundle: Bundle, maturity: Maturity | None) -> list[Examples]:
    raws = (pl.read_parquet(folder / "features" / f"raw-{day}.parquet") for day in days.test)
    encoded = (pl.concat([raw.select(KEPT), encode(raw, bundle.encoder)], how="horizontal") for raw in raws)
    return [examples_from(day, without_tasks(bundle.ranker.spec), maturity) for day in encoded]


def _outputs(bundle: Bundle, examples: list[Examples]) -> Floats:
    return np.concatenate([bundle.predict(day.features, PREDICT_ROWS) for day in examples]).astype(np.float64)


def _trials(
    examples: list[Examples], users: NDArray[np.int64], challenger_N3: Floats, reference_N3: Floats
) -> dict[str, tuple[NDArray[np.bool_], Trials]]:
    targets = [day.supervision.targets for day in examples]
    clicks, conversions, click_mask, conversion_mask = (
        np.concatenate([getattr(day, name).numpy() for day in targets]).astype(np.float64)
        for name in ("clicks_B", "conversions_B", "click_mask_B", "conversion_mask_B")
    )
    counted = {
        "click": (click_mask > 0, clicks),
        "click_and_conversion": (conversion_mask > 0, clicks * conversions),
        "conversion": ((conversion_mask > 0) & (clicks > 0), conversions),
    }
    return {
        task: (
            rows,
            Trials(
                labels=of_task > 0,
                targets=of_task,
                users=users,
                challenger=challenger_N3[:, OUTPUT_OF[task]],
                reference=reference_N3[:, OUTPUT_OF[task]],
            ),
        )
        for task, (rows, of_task) in counted.items()
    }


def _maturity(config: Config, workspace: Workspace, folder: Path, days: Days) -> Maturity | None:
    """Return how labels count that may still change, as of the newest moment that the run knows of.

    None where all are final.
    """
    versions = table_versions(folder)
    times = [pl.col(name).max() for name in ("received_time", "click_known_at", "conversion_known_at")]
    interactions = tables.scan(workspace.table("interactions"), versions["interactions"])
    newest = interactions.select(pl.max_horizontal(times)).collect().item()
    examples = tables.scan(workspace.table("examples"), versions["examples"])
    tested = examples.filter(pl.col("date").is_in(days.test))
    if not tested.select((pl.col("label_matures_at") > newest).any()).collect().item():
        return None
    cutoff = newest + dt.timedelta(microseconds=1)  # what came at the newest moment is known
    maturity = corrected_maturity(config, examples.filter(pl.col("date").is_in(days.all())), cutoff)
    return replace(maturity, propensity_clip=None)  # both models are measured on what was shown
