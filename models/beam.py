"""The likeliest targets of a source, among all or among allowed ones.

Shapes: B batch, W beam width, T target length, V vocabulary, K children, Q = W K choices, S prefixes (nodes), P edges,
N sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.sequence import BEGIN, END, PADDING, SequenceModel

NOWHERE = -1
"""The node of a hypothesis that no allowed sequence begins like, or that has ended."""


@dataclass(frozen=True)
class Trie:
    """The prefixes of allowed sequences as arrays: 16 bytes a prefix.

    Node 0 is the empty prefix. Edges of a node are those from `first_S[node]` to before `first_S[node + 1]`.
    """

    first_S: Tensor
    """(S + 1,) the first edge of each node."""
    id_P: Tensor
    """(P,) the id that each edge appends, ascending within a node."""

    def edges(self, node_BW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ids, nodes behind them and whether there is an edge, (B, W, K) each; edge p leads to node p + 1."""
        inside_BW = node_BW.clamp(min=0)
        start_BW = self.first_S[inside_BW]
        count_BW = torch.where(node_BW == NOWHERE, 0, self.first_S[inside_BW + 1] - start_BW)
        place_K = torch.arange(max(1, int(count_BW.max())), device=node_BW.device)
        exists_BWK = place_K < count_BW.unsqueeze(-1)
        edge_BWK = torch.where(exists_BWK, start_BW.unsqueeze(-1) + place_K, 0)
        return self.id_P[edge_BWK], edge_BWK + 1, exists_BWK


@dataclass(frozen=True)
class Hypotheses:
    """Targets of each source (B, W, T), likeliest first and padded with 0, with their log-probabilities (B, W).

    Where there are fewer than W, the rest are padding with log-probability -inf.
    """

    ids_BWT: Tensor
    log_p_BW: Tensor


@dataclass(frozen=True)
class _Beam:
    """What a search knows of its hypotheses so far."""

    ids_BWT: Tensor
    log_p_BW: Tensor
    node_BW: Tensor
    parent_BW: Tensor
    """Which hypothesis of the step before each one continues."""


def build_trie(sequences_NT: Tensor) -> Trie:
    """Builds the trie of allowed sequences of one length (N, T), which may repeat.

    Raises ValueError for no sequence, and for one that holds padding.
    """
    if not sequences_NT.numel():
        raise ValueError("no sequence is allowed: give at least one")
    if bool((sequences_NT == PADDING).any()):
        raise ValueError("an allowed sequence holds padding (0): all need one length")
    sorted_NT = torch.unique(sequences_NT, dim=0)
    node_N = torch.zeros(len(sorted_NT), dtype=torch.int64)
    parents, ids, nodes = [], [], 1
    for place in range(sorted_NT.shape[1]):
        # Sorted rows: a new prefix starts where the prefix or the id differs from the row before.
        column_N = sorted_NT[:, place]
        differs_N = torch.ones(len(sorted_NT), dtype=torch.bool)
        differs_N[1:] = (node_N[1:] != node_N[:-1]) | (column_N[1:] != column_N[:-1])
        parents.append(node_N[differs_N])
        ids.append(column_N[differs_N])
        node_N = nodes - 1 + differs_N.cumsum(0)
        nodes += int(differs_N.sum())
    # Level by level, and within a level in the order of the parents: edge p leads to node p + 1.
    count_S = torch.bincount(torch.cat(parents), minlength=nodes)
    return Trie(torch.cat([torch.zeros(1, dtype=torch.int64), count_S.cumsum(0)]), torch.cat(ids))


@torch.inference_mode()
def beam_search(
    model: SequenceModel, decoder: str, source_BLC: Tensor, *, width: int, length: int, allowed: Trie | None = None
) -> Hypotheses:
    """Finds the likeliest targets: those that end with END, or have the length; width 1 is the greedy search.

    Log-probabilities are sums over ids, without a correction for length. With allowed sequences, only those are found;
    their probabilities are not scaled to sum to 1. Ties go to the smaller id. A width of all possible targets is exact.

    Raises ValueError for a width or a length below 1.
    """
    if width < 1 or length < 1:
        raise ValueError(f"beam width is {width} and target length {length}, expected 1 or more of both")
    memory, reader = model.encode(source_BLC), model.decoder(decoder)
    prefixes = reader.begin(memory)
    none_B1 = source_BLC.new_zeros(len(source_BLC), 1)
    log_p_B1 = memory.states_BLD.new_zeros(none_B1.shape)
    beam = _Beam(torch.full_like(none_B1, BEGIN).unsqueeze(-1), log_p_B1, none_B1, none_B1)
    for step in range(length):
        last_BW = beam.ids_BWT[..., -1]
        has_ended = (last_BW == END) | (last_BW == PADDING)
        if step and bool(has_ended.all()):
            break
        # The last ids alone: the decoder keeps what it made of those before.
        logits_BWV, prefixes = reader.step(prefixes.taken(beam.parent_BW), last_BW)
        beam = _longer(beam, _choices(beam, logits_BWV.log_softmax(-1), has_ended, allowed), width)
    return _padded(beam, width, length)


def _choices(
    beam: _Beam, log_p_BWV: Tensor, has_ended_BW: Tensor, allowed: Trie | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what may come next: ids, nodes behind them, and log-probabilities of the longer hypothesis, (B, W, K)."""
    if allowed is None:
        shape = log_p_BWV.shape
        ids_BWK = torch.arange(shape[-1], device=log_p_BWV.device).expand(shape)
        nodes_BWK, exists_BWK = torch.zeros_like(ids_BWK), (ids_BWK != PADDING) & (ids_BWK != BEGIN)
    else:
        ids_BWK, nodes_BWK, exists_BWK = allowed.edges(beam.node_BW)
    next_BWK = log_p_BWV.gather(-1, ids_BWK).masked_fill(~exists_BWK, -torch.inf)
    # One that has ended goes on with padding alone, at no cost.
    rest_BWK = torch.full_like(next_BWK, -torch.inf)
    rest_BWK[..., 0] = 0.0
    ended_BW1 = has_ended_BW.unsqueeze(-1)
    ids_BWK = torch.where(ended_BW1, PADDING, ids_BWK)
    nodes_BWK = torch.where(ended_BW1, NOWHERE, nodes_BWK)
    return ids_BWK, nodes_BWK, beam.log_p_BW.unsqueeze(-1) + torch.where(ended_BW1, rest_BWK, next_BWK)


def _longer(beam: _Beam, choices: tuple[Tensor, Tensor, Tensor], width: int) -> _Beam:
    """Keeps the likeliest of all choices of a source."""
    ids_BQ, nodes_BQ, log_p_BQ = (part.flatten(1) for part in choices)
    children = choices[0].shape[-1]
    order_BW = _likeliest(log_p_BQ, width)
    parent_BW = order_BW // children
    begun_BWT = beam.ids_BWT.gather(1, parent_BW.unsqueeze(-1).expand(-1, -1, beam.ids_BWT.shape[-1]))
    appended_BW1 = ids_BQ.gather(1, order_BW).unsqueeze(-1)
    return _Beam(
        torch.cat([begun_BWT, appended_BW1], dim=-1),
        log_p_BQ.gather(1, order_BW),
        nodes_BQ.gather(1, order_BW),
        parent_BW,
    )


def _likeliest(log_p_BQ: Tensor, width: int) -> Tensor:
    """Returns the places of the likeliest choices, likeliest first; of equal ones the first.

    topk breaks ties as it likes, and a stable sort of all choices takes 5 to 16 times as long (1,000 to 13,000 choices,
    width 100). So topk gets no ties: integers whose upper half is the cost, since floats of 0 and more order as their
    bits do, and whose lower half is the place.
    """
    # Not the negative: zero's would have a sign, which as an integer is below all.
    cost_BQ = log_p_BQ.float().abs().view(torch.int32).long()
    place_Q = torch.arange(log_p_BQ.shape[1], device=log_p_BQ.device)
    kept = min(width, log_p_BQ.shape[1])
    return ((cost_BQ << 32) + place_Q).topk(kept, dim=1, largest=False, sorted=True).indices


def _padded(beam: _Beam, width: int, length: int) -> Hypotheses:
    """Returns the hypotheses without BEGIN, in the shape that was asked for."""
    ids_BWT = beam.ids_BWT[..., 1:].masked_fill(beam.log_p_BW.isneginf().unsqueeze(-1), PADDING)
    more = (0, length - ids_BWT.shape[2], 0, width - ids_BWT.shape[1])
    return Hypotheses(
        torch.nn.functional.pad(ids_BWT, more, value=PADDING),
        torch.nn.functional.pad(beam.log_p_BW, more[2:], value=-torch.inf),
    )
