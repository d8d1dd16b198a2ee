"""An encoder with a decoder a task: sequences in, one sequence a task out, all trained together.

Shapes: B batch, L source length, C ids of a source position, N targets of a source, M = B N targets, T target length,
P length so far, D width, E = 2 D a key with its value, H heads, V vocabulary of a decoder.

Cost: a forward pass takes 24 D^2 operations a position in an encoder layer and 28 D^2 in a decoder layer, which adds
4 D^2 a position of its memory; 4 D operations a pair of positions that attend; 2 D V a target's position for its
vocabulary. Training takes three times that. Weights, of 4 bytes: 12 D^2 an encoder layer, 16 D^2 a decoder layer, D an
id of the source, 2 D an id of a target. Training keeps about 20 x 4 D bytes a position and layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from models.serialization import load_module, save_module

PADDING, BEGIN, END = 0, 1, 2
"""Ids of every vocabulary, a source's too; what is known begins behind them and behind UNKNOWN."""
UNKNOWN = 3
FIRST_KNOWN = 4
HIDDEN = 4
"""The feed-forward layer's width in widths of the model (Vaswani et al. 2017)."""
WAVELENGTH = 10_000.0


@dataclass(frozen=True, kw_only=True)
class SequenceSpec:
    """All that determines the architecture and its initial weights."""

    source_vocabulary: int
    """Ids of the source, the special ones included."""
    targets: dict[str, int]
    """Ids of each decoder's vocabulary by the decoder's name, in order; one decoder is a model of a single task."""
    width: int = 64
    heads: int = 4
    layers: int = 2
    """Layers of the encoder and of each decoder."""
    dropout: float = 0.0
    """Share of each layer's output that training leaves out before it is added."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Memory:
    """Encoded sources (B, 1 + L, D), and which of their positions a decoder may read (B, 1 + L)."""

    states_BLD: Tensor
    present_BL: Tensor


@dataclass(frozen=True)
class Kept:
    """What a decoder's layer has computed and need not compute again at a target's next id."""

    own_PME: Tensor
    """Of the ids so far; positions come first, as `Attention.last` reads them."""
    across_BLE: Tensor
    """Of the memory, once a source."""
    present_BL: Tensor


@dataclass(frozen=True)
class Prefixes:
    """The beginnings of targets that a decoder has read: as many of each source, all of one length."""

    layers: tuple[Kept, ...]

    def taken(self, number_BN: Tensor) -> "Prefixes":
        """Returns N of each source's prefixes by their numbers, any number of times each."""
        before = self.layers[0].own_PME.shape[1] // len(number_BN)
        start_B1 = before * torch.arange(len(number_BN), device=number_BN.device).unsqueeze(1)
        row_M = (start_B1 + number_BN).flatten()
        return Prefixes(tuple(replace(kept, own_PME=kept.own_PME.index_select(1, row_M)) for kept in self.layers))


class Attention(nn.Module):
    """Attends with several heads (Vaswani et al. 2017, section 3.2.2), without dropout on the weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BQD: Tensor, read_BKE: Tensor, allowed: Tensor) -> Tensor:
        """Returns (B, Q, D) from what `key_value` made of the positions to read.

        `allowed` broadcasts to (B, H, Q, K), and every query may read something.
        """
        query_BHQD = self._split(self.query(x_BQD))
        key_BHKD, value_BHKD = (self._split(part) for part in read_BKE.chunk(2, dim=-1))
        mixed_BHQD = scaled_dot_product_attention(query_BHQD, key_BHKD, value_BHKD, attn_mask=allowed)
        output_BQD: Tensor = self.output(mixed_BHQD.transpose(1, 2).flatten(2))
        return output_BQD

    def last(self, x_MD: Tensor, read_PME: Tensor) -> Tensor:
        """Returns (M, D) of one query a row, which reads all positions.

        Up to P = 20, sums over the first dimension take an eighth to two thirds of scaled_dot_product_attention's time,
        which is made for many queries (64 to 6,400 rows, 4 heads of 16, one CPU thread), and at P = 40 as long.
        """
        query_MD = self.query(x_MD) * (x_MD.shape[-1] // self.heads) ** -0.5
        key_PMD, value_PMD = read_PME.chunk(2, dim=-1)
        weight_PMH = self._heads(query_MD * key_PMD).sum(-1).softmax(0)
        mixed_MHD = (weight_PMH.unsqueeze(-1) * self._heads(value_PMD)).sum(0)
        output_MD: Tensor = self.output(mixed_MHD.flatten(1))
        return output_MD

    def _split(self, x_BLD: Tensor) -> Tensor:
        return self._heads(x_BLD).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


class Layer(nn.Module):
    """Self-attention, attention to a memory where it belongs to a decoder, and a feed-forward layer.

    Each is normalised before it and added after it (pre-norm, Xiong et al. 2020), which trains without a long warm-up.
    """

    def __init__(self, spec: SequenceSpec, *, reads_memory: bool) -> None:
        super().__init__()
        width = spec.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if reads_memory else 2))
        self.own = Attention(width, spec.heads)
        self.across = Attention(width, spec.heads) if reads_memory else None
        self.feed = nn.Sequential(nn.Linear(width, HIDDEN * width), nn.GELU(), nn.Linear(HIDDEN * width, width))
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x_MTD: Tensor, allowed: Tensor, memory: Memory | None = None) -> Tensor:
        """Maps (M, T, D) to the same shape; where there is a memory, its row m serves M / B rows of x."""
        normed_MTD = self.norms[0](x_MTD)
        x_MTD = x_MTD + self.dropout(self.own(normed_MTD, self.own.key_value(normed_MTD), allowed))
        return self._rest(x_MTD, None if memory is None else self.begin(memory))

    def begin(self, memory: Memory) -> Kept:
        """Returns what is kept before a target's first id."""
        assert self.across is not None, "an encoder's layer reads no memory"
        across_BLE = self.across.key_value(memory.states_BLD)
        return Kept(across_BLE.new_zeros(0, len(across_BLE), across_BLE.shape[-1]), across_BLE, memory.present_BL)

    def step(self, x_MD: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        """Maps the position (M, D) behind what was kept to the same shape, and keeps it too."""
        normed_MD = self.norms[0](x_MD)
        kept = replace(kept, own_PME=torch.cat([kept.own_PME, self.own.key_value(normed_MD).unsqueeze(0)]))
        x_MD = x_MD + self.dropout(self.own.last(normed_MD, kept.own_PME))
        return self._rest(x_MD, kept), kept

    def _rest(self, x: Tensor, kept: Kept | None) -> Tensor:
        if self.across is not None and kept is not None:
            # All targets of a source ask at once, so that its keys and values are there once.
            asked_BQD = self.norms[1](x).reshape(len(kept.across_BLE), -1, x.shape[-1])
            read_BQD = self.across(asked_BQD, kept.across_BLE, kept.present_BL[:, None, None])
            x = x + self.dropout(read_BQD.reshape(x.shape))
        fed: Tensor = self.dropout(self.feed(self.norms[-1](x)))
        return x + fed


class Encoder(nn.Module):
    """Reads a source whose positions each have one or more ids: their embeddings add up."""

    def __init__(self, spec: SequenceSpec) -> None:
        super().__init__()
        self.embedding = _embedding(spec.source_vocabulary, spec.width)
        self.layers = nn.ModuleList(Layer(spec, reads_memory=False) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)

    def forward(self, source_BLC: Tensor) -> Memory:
        """Encodes ids (B, L, C), 0 where absent; a position whose ids are all 0 is padding, and a source may be empty.

        A position that is always there comes first, so that an empty source has something to read too.
        """
        source_BLC = nn.functional.pad(source_BLC, (0, 0, 1, 0), value=PADDING)
        present_BL = (source_BLC != PADDING).any(-1)
        source_BLC[:, 0, 0], present_BL[:, 0] = BEGIN, True
        states_BLD = self.embedding(source_BLC).sum(2)
        states_BLD = states_BLD + _places(states_BLD)
        for layer in self.layers:
            states_BLD = layer(states_BLD, present_BL[:, None, None])
        return Memory(self.norm(states_BLD), present_BL)


class Decoder(nn.Module):
    """Predicts a target's next id from the ids before it and from the source."""

    def __init__(self, spec: SequenceSpec, vocabulary: int) -> None:
        super().__init__()
        self.embedding = _embedding(vocabulary, spec.width)
        self.layers = nn.ModuleList(Layer(spec, reads_memory=True) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)
        self.output = nn.Linear(spec.width, vocabulary)

    def forward(self, memory: Memory, given_BNT: Tensor) -> Tensor:
        """Returns logits (B, N, T, V) of the id behind each of the given ones, which begin with BEGIN."""
        given_MT = given_BNT.flatten(0, 1)
        x_MTD = self.embedding(given_MT)
        x_MTD = x_MTD + _places(x_MTD)
        length = given_MT.shape[1]
        # Padding is behind a target, where the causal mask hides it from all that counts.
        earlier_TT = torch.ones(length, length, dtype=torch.bool, device=given_MT.device).tril()
        for layer in self.layers:
            x_MTD = layer(x_MTD, earlier_TT, memory)
        logits_MTV: Tensor = self.output(self.norm(x_MTD))
        return logits_MTV.view(*given_BNT.shape, -1)

    def begin(self, memory: Memory) -> Prefixes:
        """Returns one empty prefix a source."""
        return Prefixes(tuple(layer.begin(memory) for layer in self._layers()))

    def step(self, prefixes: Prefixes, id_BN: Tensor) -> tuple[Tensor, Prefixes]:
        """Appends an id to each prefix, BEGIN to an empty one; returns logits (B, N, V) of the next, and the prefixes.

        The logits are those of a pass over the whole prefix, up to rounding.
        """
        x_MD = self.embedding(id_BN.flatten())
        x_MD = x_MD + _places(x_MD[:1], first=len(prefixes.layers[0].own_PME))
        layers = []
        for layer, kept in zip(self._layers(), prefixes.layers, strict=True):
            x_MD, longer = layer.step(x_MD, kept)
            layers.append(longer)
        logits_MV: Tensor = self.output(self.norm(x_MD))
        return logits_MV.view(*id_BN.shape, -1), Prefixes(tuple(layers))

    def _layers(self) -> Iterable[Layer]:
        return cast("Iterable[Layer]", self.layers)


class SequenceModel(nn.Module):
    """Translates a source into one target a task, by an encoder that all decoders share.

    Equal specs give equal weights; the global random state is left alone. Source: Luong et al. 2016, section 3.1, with
    transformers.
    """

    def __init__(self, spec: SequenceSpec) -> None:
        super().__init__()
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self.encoder = Encoder(spec)
            self.decoders = nn.ModuleDict({name: Decoder(spec, size) for name, size in spec.targets.items()})

    def encode(self, source_BLC: Tensor) -> Memory:
        """Encodes ids (B, L, C) int64."""
        memory: Memory = self.encoder(source_BLC)
        return memory

    def decode(self, name: str, memory: Memory, given_BNT: Tensor) -> Tensor:
        """Returns a decoder's logits (B, N, T, V) of the ids behind the given ones, all at once as in training."""
        logits_BNTV: Tensor = self.decoders[name](memory, given_BNT)
        return logits_BNTV

    def decoder(self, name: str) -> Decoder:
        """Returns a decoder, to decode id by id."""
        return cast("Decoder", self.decoders[name])

    def losses(self, source_BLC: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns each decoder's mean loss over the ids of its targets (B, N, T), under teacher forcing.

        Targets hold no BEGIN, end with END where their length is not fixed, and are padded with 0, which is no part of
        the mean; a decoder without any id in the batch has the loss 0.
        """
        memory = self.encode(source_BLC)
        return {name: _mean_loss(self.decode(name, memory, given_of(ids)), ids) for name, ids in targets.items()}


def given_of(targets_BNT: Tensor) -> Tensor:
    """Returns what a decoder is given to predict targets: BEGIN, and all ids but the last."""
    return nn.functional.pad(targets_BNT[..., :-1], (1, 0), value=BEGIN)


def save_sequence_model(model: SequenceModel, folder: Path) -> None:
    """Writes the model's weights (safetensors) and spec (JSON) into a folder."""
    save_module(model, model.spec, folder)


def load_sequence_model(folder: Path) -> SequenceModel:
    """Reads a saved model onto the CPU; ValueError when a file is missing, damaged or another model's."""
    return load_module(folder, SequenceSpec, SequenceModel)


def forward_operations(spec: SequenceSpec, source_length: int, target_lengths: Mapping[str, int]) -> int:
    """Returns the multiplications and additions of a forward pass of one source with one target a decoder.

    Layers and vocabularies count as in the module's cost; norms and activations are left out.
    """
    width, length = spec.width, source_length + 1
    total = spec.layers * length * (24 * width**2 + 4 * width * length)
    for name, steps in target_lengths.items():
        across = 4 * length * width**2  # keys and values of the memory
        total += spec.layers * (steps * (28 * width**2 + 4 * width * (steps + length)) + across)
        total += 2 * steps * width * spec.targets[name]
    return total


def _mean_loss(logits_BNTV: Tensor, targets_BNT: Tensor) -> Tensor:
    flat = logits_BNTV.flatten(0, -2), targets_BNT.flatten()
    total = cross_entropy(*flat, ignore_index=PADDING, reduction="sum")
    return total / (targets_BNT != PADDING).sum().clamp(min=1)


def _embedding(size: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(size, width, padding_idx=PADDING)
    with torch.no_grad():
        # As large as the places, of which each unit has a variance of a half; torch's default of 1 would bury them.
        embedding.weight.mul_(0.5)
    return embedding


def _places(x_BLD: Tensor, first: int = 0) -> Tensor:
    """Returns sines and cosines of the places from the first one on (L, D), of wavelengths from 2 pi on.

    Source: Vaswani et al. 2017, section 3.5.
    """
    length, width = x_BLD.shape[-2:]
    place_L1 = torch.arange(first, first + length, dtype=x_BLD.dtype, device=x_BLD.device).unsqueeze(1)
    rate_D = WAVELENGTH ** (-torch.arange(0, width, 2, dtype=x_BLD.dtype, device=x_BLD.device) / width)
    return torch.cat([(place_L1 * rate_D).sin(), (place_L1 * rate_D).cos()], dim=1)


def _check(spec: SequenceSpec) -> None:
    if not spec.targets:
        raise ValueError("targets is empty: name at least one decoder with the size of its vocabulary")
    for name, size in {"source_vocabulary": spec.source_vocabulary, **spec.targets}.items():
        if size < FIRST_KNOWN:
            raise ValueError(f"{name} has {size} ids, expected {FIRST_KNOWN} or more: the first ones are special")
    if spec.width % (2 * spec.heads):
        raise ValueError(f"width is {spec.width} with {spec.heads} heads, expected a multiple of {2 * spec.heads}")
