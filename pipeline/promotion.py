"""Which version is champion: moved by register, promote and rollback, each move recorded in the registry."""

import datetime as dt
import json
import tempfile
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from pipeline import registry, tracking
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.scoring import check_features, load_bundle
from pipeline.stage import LOG
from pipeline.workspace import Workspace

MOVE = "champion_move_"
REASON_LENGTH = 1000
ROLLBACK = "rollback"
REGISTER = "register"
SHOWN = 200
UNRECORDED = "unrecorded"
"""In the place of the time at which the alias was moved in MLflow, past these commands."""


@dataclass(frozen=True)
class Move:
    """One move of the alias `champion`.

    Attributes:
        version: that became champion.
        before: that was champion, None where none was.
        at: UTC, ISO 8601.
        by: register, promote or rollback.
        reason: in words; '' where none was given.
    """

    version: str
    before: str | None
    at: str
    by: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """A version as `history` shows it; `champion` has the times from and until which it was, until None for now."""

    version: str
    made_at: dt.datetime
    tags: dict[str, str]
    is_champion: bool
    champion: list[tuple[str, str | None]]


def move_champion(config: Config, client: tracking.Client, move: Move) -> None:
    """Make a version champion if the champion is still the one that it was held against, and record the move.

    The move is recorded before the alias moves: a process killed between the two leaves a move that `moves` leaves
    out, since the alias does not bear it out.

    Raises:
        ValueError: another process moved the champion meanwhile.
    """
    again = "`counterpoise history` shows it; give the command again if it shall be replaced"
    with registry.only_promoter(config, client) as still_ours:
        now = tracking.champion_version(config, client)
        if now != move.before:
            raise ValueError(
                f"champion of {config.tracking.model!r} is {_named(now)}, it was {_named(move.before)} when version "
                f"{move.version} was checked: another process moved it; {again}"
            )
        number = 1 + max(_recorded(registry.model_tags(config, client)), default=0)
        registry.tag_model(config, client, f"{MOVE}{number:06d}", json.dumps(asdict(move), ensure_ascii=False))
        registry.set_alias(config, client, tracking.CHAMPION, move.version)
        told = {"at": move.at, "by": move.by, "before": str(move.before), "reason": move.reason}
        registry.tag_version(config, client, move.version, {f"champion_{key}": value for key, value in told.items()})
        if not still_ours():
            raise ValueError(
                f"the registry's lock was lost while version {move.version} became champion: another process may have "
                f"moved it too; {again}"
            )


def make_move(version: str, before: str | None, *, by: str, reason: str) -> Move:
    """Return a move of now."""
    at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return Move(version, before, at, by, _cut(reason))


def _cut(reason: str) -> str:
    """Cut a reason to what takes `REASON_LENGTH` characters as JSON; a tag that is cut later cannot be read again."""
    text = reason.encode(errors="replace").decode()[:REASON_LENGTH]
    lengths = accumulate(len(json.dumps(sign, ensure_ascii=False)) - len('""') for sign in text)
    return text[: sum(length <= REASON_LENGTH for length in lengths)]


def promote(config: Config, workspace: Workspace, version: str, *, reason: str, force: bool) -> Move:
    """Make a version champion by hand, after loading it.

    Raises:
        ValueError: it is champion already, does not exist or load, needs features that this configuration does not
            make, its gate failed and it is not forced, or another process moved the champion meanwhile.
    """
    if force and not reason.strip():
        raise ValueError("--force needs a --reason: it is recorded with the version")
    client = _registry(config, workspace)
    before = tracking.champion_version(config, client)
    tags = tracking.version_tags(config, client, version)
    if before == version:
        raise ValueError(f"version {version} of {config.tracking.model!r} is champion already: nothing to promote")
    if tags.get("gate") == "failed" and not force:
        raise ValueError(
            f"version {version} failed its gate ({tags.get('decision', 'no decision recorded')}): give --force and a "
            "--reason to promote it nevertheless"
        )
    check_loads(config, client, version)
    move = make_move(version, before, by="promote (forced)" if force else "promote", reason=reason)
    move_champion(config, client, move)
    return move


def rollback(config: Config, workspace: Workspace, to: str | None, *, reason: str) -> Move:
    """Make the champion before this one champion again, or the version that is given.

    Repeated it goes on to the one before that: a version that was rolled back from is not come back to.

    Raises:
        ValueError: there is none to go back to, or as `promote`, but for the gate.
    """
    client = _registry(config, workspace)
    before = tracking.champion_version(config, client)
    if before is None:
        raise ValueError(f"no version of {config.tracking.model!r} is champion: promote one instead")
    target = to or champion_before(moves(registry.model_tags(config, client), before), before)
    if target is None:
        raise ValueError(
            f"no champion before version {before} is recorded: name one with --to, `counterpoise history` shows them"
        )
    if target == before:
        raise ValueError(f"version {before} of {config.tracking.model!r} is champion already: nothing to roll back")
    check_loads(config, client, target)
    move = make_move(target, before, by=ROLLBACK, reason=reason)
    move_champion(config, client, move)
    return move


def check_loads(config: Config, client: tracking.Client, version: str) -> None:
    """Load a version as the stages that serve it do.

    Raises:
        ValueError: it does not exist, its files are not those that were registered, or it needs other features.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = tracking.fetch(config, client, version, Path(scratch))
        check_features(load_bundle(found.folder, version), plan_of(config))


def history(config: Config, workspace: Workspace) -> list[Entry]:
    """Return all versions, the newest first, with the times at which each was champion.

    Raises:
        ValueError: there is no registry, or it does not answer.
    """
    client = _registry(config, workspace)
    champion = tracking.champion_version(config, client)
    made = moves(registry.model_tags(config, client), champion)
    last = None if made and made[-1].version == champion else UNRECORDED
    ends = [*(move.at for move in made[1:]), last][: len(made)]
    spells: dict[str, list[tuple[str, str | None]]] = {}
    for move, end in zip(made, ends, strict=True):
        spells.setdefault(move.version, []).append((move.at, end))
    return [
        Entry(one.version, one.made_at, one.tags, one.version == champion, spells.get(one.version, []))
        for one in reversed(registry.versions(config, client))
    ]


def _registry(config: Config, workspace: Workspace) -> tracking.Client:
    """Return the client of a registry that is there; a workspace whose name is mistyped is not made.

    Raises:
        ValueError: there is none, or it does not answer.
    """
    client = tracking.connect_to_read(config, workspace)
    if client is None:
        raise ValueError(
            f"{workspace.root} has no mlflow.db, so no model was registered there: correct --workspace or "
            "tracking.uri, or run `counterpoise register` first"
        )
    return client


def moves(tags: dict[str, str], champion: str | None) -> list[Move]:
    """Return the recorded moves, the oldest first, without those that a kill kept from happening.

    One that cannot be read, such as a tag that was edited in MLflow, is left out with a warning: the others still tell.
    """
    found = [move for _, text in sorted(_recorded(tags).items()) if (move := _read(text)) is not None]
    after = [*(move.before for move in found[1:]), champion][: len(found)]
    return [move for move, now in zip(found, after, strict=True) if now == move.version or now != move.before]


def _read(text: str) -> Move | None:
    try:
        return Move(**json.loads(text))
    except (TypeError, ValueError) as error:
        LOG.warning("a recorded move of the champion cannot be read and is left out (%s): %s", error, text[:SHOWN])
        return None


def withdrawn(config: Config, workspace: Workspace) -> frozenset[str]:
    """Return the versions that a promote or a rollback took the place of when they were last champion; none is now."""
    client = tracking.connect_to_read(config, workspace)
    if client is None:
        return frozenset()
    champion = tracking.champion_version(config, client)
    last = {move.before: move.by for move in moves(registry.model_tags(config, client), champion)}
    return frozenset(one for one, by in last.items() if one is not None and one != champion and by != REGISTER)


def champion_before(made: list[Move], champion: str) -> str | None:
    """Return the version that a rollback goes back to, None where none is recorded.

    Moves are a stack: a promotion lays its version on top, a rollback takes off what lies above its own.
    """
    stack: list[str] = []
    for move in made:
        if move.before is not None and (not stack or stack[-1] != move.before):
            stack.append(move.before)  # what came before the record, or was moved without it
        if move.by == ROLLBACK and move.version in stack:
            while stack[-1] != move.version:
                stack.pop()
        else:
            stack.append(move.version)
    if not stack or stack[-1] != champion:
        return stack[-1] if stack else None  # the alias was moved in MLflow, past the record
    return stack[-2] if len(stack) > 1 else None


def _recorded(tags: dict[str, str]) -> dict[int, str]:
    return {int(name.removeprefix(MOVE)): value for name, value in tags.items() if name.startswith(MOVE)}


def _named(version: str | None) -> str:
    return "none" if version is None else f"version {version}"
