"""What two models' retrievers find for the same users on a test day: recall by user, and coverage."""

import datetime as dt
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encoding import encode
from pipeline.config import Config
from pipeline.list_quality import relevant_on
from pipeline.metrics import Floats
from pipeline.ranking_metrics import coverage, recall_of_users
from pipeline.retrieve import candidates_for, make_index
from pipeline.scoring import Bundle, Day, load_day
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Retrieved:
    """What each of some models retrieves.

    Attributes:
        users: by label the ids of the users with a relevant item, (E,).
        recall: by label and model the recall of each of them, (E,).
        coverage: by model the share of the available items that any user's candidates hold.
    """

    users: dict[str, pl.Series]
    recall: dict[str, list[Floats]]
    coverage: list[float]


def retrieve_with(
    config: Config, workspace: Workspace, folder: Path, date: dt.date, bundles: Sequence[Bundle]
) -> Retrieved:
    """Retrieve every user's candidates of a test day with each model, before ranking.

    A label that nobody gave on the day is left out. Costs a search for every user and model; the day is loaded once.

    Args:
        config: of the run.
        workspace: its tables.
        folder: the run's folder.
        date: the test day.
        bundles: the models.
    """
    day = load_day(config, workspace, folder / "features", date, bundles[0].encoder)
    lists = [_candidates(config, bundle, _encoded(day, bundle)) for bundle in bundles]
    users: dict[str, pl.Series] = {}
    recall: dict[str, list[Floats]] = {}
    for label, (of_users, items) in relevant_on(workspace, day).pairs.items():
        if len(of_users):
            found = [
                recall_of_users(lists_UK=one, relevant_users=of_users, relevant_items=items, k=one.shape[1])
                for one in lists
            ]
            users[label] = day.users["user_id"].gather(found[0][0])
            recall[label] = [values for _, values in found]
    return Retrieved(users, recall, [coverage(one, catalogue_size=day.items.height) for one in lists])


def _encoded(day: Day, bundle: Bundle) -> Day:
    return replace(day, user_codes=encode(day.users, bundle.encoder), item_codes=encode(day.items, bundle.encoder))


def _candidates(config: Config, bundle: Bundle, day: Day) -> NDArray[np.int64]:
    with tempfile.TemporaryDirectory() as scratch:
        make_index(config, bundle, day, Path(scratch))
        return candidates_for(config, bundle, day, Path(scratch)).items
