"""What each candidate source adds to the lists of a day: who found what was clicked, and the recall without it.

Shapes: U users, K places of a list, P relevant pairs, E users with a relevant item.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.exact_search import NONE
from pipeline.metrics import Interval, user_bootstrap
from pipeline.pair_scorer import PairScorer
from pipeline.rank import USERS, joined, rank_users
from pipeline.ranking_metrics import recall_of_users
from pipeline.rerank_users import load_reranker
from pipeline.retrieve import Candidates, Retrieval, lists_by_source, load_retrieval, merged_candidates
from pipeline.scoring import Bundle, Day
from pipeline.source_merge import SOURCES, Bits, Integers, Pairs
from pipeline.sources import Sources

Ranked = Callable[[Integers, Candidates], Candidates]
"""Gives users by ascending numbers their lists of these candidates, in order and cut."""


@dataclass(frozen=True)
class Active:
    """Some users that clicked on a day, by ascending numbers, and what they did, by their places among them."""

    users: Integers
    relevant: dict[str, Pairs]


def active_users(relevant: Mapping[str, Pairs], most: int, seed: int) -> Active:
    """Return the users with a click, or a sample of them.

    Raises:
        ValueError: nobody clicked.
    """
    users = np.unique(relevant["click"][0])
    if not len(users):
        raise ValueError(
            "nobody clicked on the day that candidate sources are measured on: choose another day by --date or "
            "split.validation, or set retrieval.sources = ['two_towers']"
        )
    if len(users) > most:
        users = np.sort(np.random.default_rng(seed).permutation(users)[:most])
    return Active(users, {label: _among(users, pairs) for label, pairs in relevant.items()})


def _among(users: Integers, pairs: Pairs) -> Pairs:
    of_users, items = pairs
    kept = np.isin(of_users, users)
    return np.searchsorted(users, of_users[kept]), items[kept]


def added(
    items_UK: Integers, sources_UK: Bits, bits: Mapping[str, int], relevant: Mapping[str, Pairs]
) -> dict[str, dict[str, dict[str, int]]]:
    """Return by label and source the hits of lists that the source found, and those that it alone found.

    Args:
        items_UK: the lists.
        sources_UK: who found each item.
        bits: which bit of that is of which source.
        relevant: user and item numbers by label.
    """
    told: dict[str, dict[str, dict[str, int]]] = {}
    for label, (users, items) in relevant.items():
        users_P, items_P = np.unique(np.stack([users, items]), axis=1)
        held_H = sources_UK[users_P][items_UK[users_P] == items_P[:, None]]
        counted = {name: _held(held_H, bit) for name, bit in bits.items()}
        told[label] = {name: {"hits": hits, "alone": alone} for name, (hits, alone) in counted.items()}
    return told


def _held(sources: Bits, bit: int) -> tuple[int, int]:
    """Return how many items a source found, and how many it alone."""
    return int((sources >> bit & 1).sum()), int((sources == 1 << bit).sum())


def difference_in_recall(ours: Integers, theirs: Integers, pairs: Pairs, k: int, replicates: int) -> Interval:
    """Return the recall at k of lists (U, K) less that of others for the same users, with its interval over users."""
    users, items = pairs
    of = partial(recall_of_users, relevant_users=users, relevant_items=items, k=k)
    gains_E1 = (of(lists_UK=ours)[1] - of(lists_UK=theirs)[1])[:, None]
    once = np.ones((len(gains_E1), 1))
    found = user_bootstrap(lambda counts_RE: counts_RE @ gains_E1 / len(gains_E1), once, replicates=replicates, seed=0)
    return found[0]


def evaluate_sources(
    config: Config, bundle: Bundle, day: Day, index: Path, relevant: Mapping[str, Pairs]
) -> dict[str, Any] | None:
    """Measure what each source of a model adds to the lists of a day, on a sample of the users that clicked.

    Args:
        config: the configuration; its retrieval.quota_users bounds the sample.
        bundle: the model.
        day: the day.
        index: the folder of its index.
        relevant: what users went on to do.

    Returns:
        As `what_sources_add`, without figures where nobody clicked; None where the towers are the only source.
    """
    if bundle.sources is None:
        return None
    if not len(relevant["click"][0]):
        return {**bundle.sources.record, "users": 0}
    scorer, reranker = PairScorer(config, bundle, day), load_reranker(config, bundle, day)

    def ranked(users: Integers, candidates: Candidates) -> Candidates:
        rows = [slice(start, start + USERS) for start in range(0, len(users), USERS)]
        lists = joined([rank_users(config, scorer, reranker, users[part], candidates.of(part)) for part in rows])
        return Candidates(lists.items, lists.sources)

    active = active_users(relevant, config.retrieval.quota_users, config.seed)
    retrieval = load_retrieval(config, bundle, day, index)
    return what_sources_add(retrieval, bundle.sources, active, ranked, replicates=config.evaluation.replicates)


def what_sources_add(
    retrieval: Retrieval, sources: Sources, active: Active, ranked: Ranked, *, replicates: int
) -> dict[str, Any]:
    """Measure on a day's users what each source is worth.

    Args:
        retrieval: of the day, with the model's sources.
        sources: these.
        active: the users and what they did.
        ranked: ranks candidates, as the lists are.
        replicates: of the bootstrap over users.

    Returns:
        What sources.json says; `users`; `candidates` and `lists`, each with `share` (of places, by source: `found`,
        `alone`), `added` (hits by label and source) and `without` (by label and source the recall less the recall
        where the other sources fill its places, with its interval; None where nobody has a relevant item).
    """
    lists = lists_by_source(retrieval, sources.names, active.users)
    bits = {name: SOURCES.index(name) for name in sources.names}
    placed = {name: lists[name] for name in sources.placed}
    whole = merged_candidates(retrieval, active.users, placed, sources.order)
    made = {"candidates": whole, "lists": ranked(active.users, whole)}
    others: dict[str, dict[str, Integers]] = {step: {} for step in made}
    for name in sources.names:
        kept = {other: items for other, items in lists.items() if other != name}
        rest = merged_candidates(retrieval, active.users, kept, [other for other in sources.order if other != name])
        others["candidates"][name] = rest.items
        others["lists"][name] = ranked(active.users, rest).items
    told: dict[str, Any] = {
        step: {
            "k": found.items.shape[1],
            "share": _shares(found, bits),
            "added": added(found.items, found.sources, bits, active.relevant),
            "without": {
                label: {
                    name: difference_in_recall(
                        found.items, others[step][name], pairs, found.items.shape[1], replicates
                    ).as_dict()
                    if len(pairs[0])
                    else None
                    for name in sources.names
                }
                for label, pairs in active.relevant.items()
            },
        }
        for step, found in made.items()
    }
    return {**sources.record, "users": len(active.users), **told}


def _shares(found: Candidates, bits: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Return the share of the items that each source found, and that it alone found."""
    held = found.sources[found.items != NONE]
    counted = {name: _held(held, bit) for name, bit in bits.items()}
    return {name: {"found": hits / len(held), "alone": alone / len(held)} for name, (hits, alone) in counted.items()}
