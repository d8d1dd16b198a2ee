"""Items as short sequences of digits that near items begin alike: residual quantisation of the towers' vectors.

Each level codes what the levels before it left over (Rajput et al. 2023, section 3.1, with k-means for its
autoencoder); a last digit tells items of one code apart.

Shapes: I items, W width, L levels, K centres of a level, D = L + 1 digits.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.index import Floats, centroids
from pipeline.workspace import read_json, write_json, write_parquet

CODEBOOKS, ITEMS, DIGEST = "codebooks.safetensors", "items.parquet", "semantic_ids.json"


@dataclass(frozen=True)
class SemanticIds:
    """The codebooks, and the digits of all items that were ever coded: an item keeps its digits."""

    codebooks_LKW: list[Floats]
    """A level's centres (K, W); a level of few vectors has fewer."""
    items: pl.DataFrame
    """item_id and digits (Array of D Int32), by item_id."""
    last_digits: int
    """Values of the last digit that a model knows: twice as many as the first items took."""

    @property
    def sizes(self) -> list[int]:
        """Return how many values a model knows of each digit."""
        return [*(len(centres) for centres in self.codebooks_LKW), self.last_digits]

    def extended(self, item_ids: pl.Series, vectors_IW: Floats) -> "SemanticIds":
        """Code the items that have no digits yet with the same codebooks; the others keep theirs."""
        is_new = ~item_ids.is_in(self.items["item_id"].implode())
        if not is_new.any():
            return self
        codes = nearest_codes(self.codebooks_LKW, vectors_IW[is_new.to_numpy()])
        taken = np.array(self.items["digits"].to_list(), dtype=np.int64)
        items = pl.concat([self.items, _told_apart(item_ids.filter(is_new), codes, taken)]).sort("item_id")
        return replace(self, items=items)

    def digits_of(self, item_ids: pl.Series) -> NDArray[np.int64]:
        """Return the digits (I, D) of items; -1 throughout for one that has none."""
        missing = [-1] * (len(self.codebooks_LKW) + 1)
        joined = item_ids.alias("item_id").to_frame().join(self.items, on="item_id", how="left", maintain_order="left")
        rows = [missing if row is None else row for row in joined["digits"].to_list()]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(missing))

    def digest(self) -> str:
        """Return the SHA-256 of codebooks and items."""
        digest = hashlib.sha256(f"{self.last_digits} {self.items.write_json()}".encode())
        for centres in self.codebooks_LKW:
            digest.update(centres.tobytes())
        return digest.hexdigest()


def semantic_ids_of(item_ids: pl.Series, vectors_IW: Floats, *, levels: int, centres: int, seed: int) -> SemanticIds:
    """Learn codebooks of items' vectors and code the items.

    Raises:
        ValueError: there is no item.
    """
    if not len(item_ids):
        raise ValueError("there is no item to code: retrieve on a day with available items")
    codebooks: list[Floats] = []
    rest_IW = vectors_IW.astype(np.float32)
    for level in range(levels):
        codebooks.append(centroids(rest_IW, centres, seed + level))
        rest_IW = rest_IW - codebooks[-1][_nearest(codebooks[-1], rest_IW)]
    nothing = np.zeros((0, levels + 1), dtype=np.int64)
    items = _told_apart(item_ids, nearest_codes(codebooks, vectors_IW), nothing).sort("item_id")
    most = 1 + max(last for *_, last in items["digits"].to_list())
    return SemanticIds(codebooks, items, 2 * most)


def nearest_codes(codebooks_LKW: list[Floats], vectors_IW: Floats) -> NDArray[np.int64]:
    """Return the centres (I, L) that are nearest to what the levels before left over."""
    rest_IW = vectors_IW.astype(np.float32)
    codes: list[NDArray[np.int64]] = []
    for centres_KW in codebooks_LKW:
        codes.append(_nearest(centres_KW, rest_IW))
        rest_IW = rest_IW - centres_KW[codes[-1]]
    return np.stack(codes, axis=1)


def _nearest(centres_KW: Floats, vectors_IW: Floats) -> NDArray[np.int64]:
    scores_IK = vectors_IW @ centres_KW.T - 0.5 * np.square(centres_KW).sum(axis=1)
    return np.asarray(scores_IK.argmax(axis=1), dtype=np.int64)


def _told_apart(item_ids: pl.Series, codes_IL: NDArray[np.int64], taken_ID: NDArray[np.int64]) -> pl.DataFrame:
    """Give each item of one code another last digit, in the order of the ids, behind those that are taken."""
    used: dict[tuple[int, ...], int] = {}
    for *code, last in taken_ID.tolist():
        used[tuple(code)] = max(used.get(tuple(code), 0), last + 1)
    digits: dict[str, list[int]] = {}
    for item, code in sorted(zip(item_ids.to_list(), codes_IL.tolist(), strict=True)):
        last = used.get(tuple(code), 0)
        used[tuple(code)] = last + 1
        digits[item] = [*code, last]
    kind = pl.Array(pl.Int32, codes_IL.shape[1] + 1)
    return pl.DataFrame({"item_id": list(digits), "digits": list(digits.values())}, schema_overrides={"digits": kind})


def save_semantic_ids(ids: SemanticIds, folder: Path) -> None:
    """Write codebooks, items and the digest of both into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"level_{level}": centres for level, centres in enumerate(ids.codebooks_LKW)}, folder / CODEBOOKS)
    write_parquet(ids.items, folder / ITEMS)
    told = {"last_digits": ids.last_digits, "levels": len(ids.codebooks_LKW), "sha256": ids.digest()}
    write_json(folder / DIGEST, told)


def load_semantic_ids(folder: Path, made_by: str) -> SemanticIds:
    """Read what `save_semantic_ids` wrote; `made_by` is the command whose it was.

    Raises:
        ValueError: a file is missing, unreadable, or not the one that was written.
    """
    stated = read_json(folder / DIGEST, made_by)
    try:
        arrays, items = load_file(folder / CODEBOOKS), pl.read_parquet(folder / ITEMS)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{folder} cannot be read ({error}): run `counterpoise {made_by}` again") from error
    ids = SemanticIds([arrays[f"level_{level}"] for level in range(stated["levels"])], items, stated["last_digits"])
    if ids.digest() != stated["sha256"]:
        raise ValueError(f"{folder} is not what was written (SHA-256 differs): run `counterpoise {made_by}` again")
    return ids
