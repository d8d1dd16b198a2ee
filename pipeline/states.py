"""Feature states on disk: one folder a day, whole or not at all."""

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from features.asof import FeatureState
from features.counters import total
from features.plan import USER
from pipeline.workspace import replaced_folder, write_parquet


def state_folder(states: Path, day: dt.date) -> Path:
    """Return the folder of the state as of a day."""
    return states / f"state-{day}"


def _write(state: FeatureState, folder: Path) -> None:
    for name, frame in state.counters.items():
        write_parquet(frame, folder / f"counter-{name}.parquet")
    if state.sequences is not None:
        write_parquet(state.sequences, folder / "sequences.parquet")
    if state.entities is not None:
        write_parquet(state.entities, folder / "entities.parquet")


def save_state(state: FeatureState, states: Path) -> None:
    """Write a state, counters, sequences and entities as a Parquet file each, in place of an earlier one of its day."""
    with replaced_folder(state_folder(states, state.as_of)) as draft:
        _write(state, draft)


def load_state(states: Path, day: dt.date, users: pl.Expr | None = None) -> FeatureState:
    """Read the state as of a day, or of it what concerns some users.

    Args:
        states: folder of the states.
        day: the day.
        users: which rows with a user_id are read, so that memory holds their counters only; the prior rates are
            those of all rows.

    Raises:
        ValueError: featurize has not written it.
    """
    folder = state_folder(states, day)
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: run `counterpoise featurize` first with the same options")
    files = {file.stem.removeprefix("counter-"): file for file in sorted(folder.glob("counter-*.parquet"))}
    counters = {name: _read(file, users) for name, file in files.items()}
    sequences, entities = (
        _read(file, users) if file.exists() else None
        for file in (folder / "sequences.parquet", folder / "entities.parquet")
    )
    totals = {} if users is None else {name: _totals(file) for name, file in files.items()}
    return FeatureState(day, counters, sequences, entities, totals)


def _read(file: Path, users: pl.Expr | None) -> pl.DataFrame:
    if users is None or USER not in pl.read_parquet_schema(file):
        return pl.read_parquet(file)
    return pl.scan_parquet(file).filter(users).collect()


def _totals(file: Path) -> dict[str, float]:
    """Return the sum of each count over all rows of a counter, read column by column."""
    names = [name for name in pl.read_parquet_schema(file) if "@" in name]
    return {name: total(pl.read_parquet(file, columns=[name])[name]) for name in names}


def nearest_state(states: Path, day: dt.date) -> FeatureState | None:
    """Read the latest state that is as of a day or before it, None where there is none."""
    days = [found for found in stored_days(states) if found <= day]
    return load_state(states, max(days)) if days else None


def stored_days(states: Path) -> list[dt.date]:
    """Return the days that have a state; drafts of a killed run are none."""
    if not states.is_dir():
        return []
    return sorted(dt.date.fromisoformat(path.name.removeprefix("state-")) for path in states.glob("state-*"))


def prune_states(states: Path, keep: Callable[[dt.date], bool]) -> None:
    """Remove the states of days that are not to be kept."""
    for day in stored_days(states):
        if not keep(day):
            folder, gone = state_folder(states, day), states / f".gone-{day}"
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)  # a kill in the middle of the removal must not leave half a state
            shutil.rmtree(gone)
