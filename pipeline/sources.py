"""The candidate sources that ship with a model: which they are, who fills which places, and the sequence model.

In the model's folder: `sources.json`, and with sequences `sequence/` and `semantic_ids/`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.sequence import SequenceModel, load_sequence_model, save_sequence_model
from models.serialization import weights_digest
from pipeline.semantic_ids import SemanticIds, load_semantic_ids, save_semantic_ids
from pipeline.source_merge import SEQUENCE
from pipeline.workspace import read_json, write_json

FILE, MODEL, IDS = "sources.json", "sequence", "semantic_ids"
SOURCES_KEY = "sources"
"""Of training.json: the names of the sources, where there are some beside the towers."""


@dataclass(frozen=True)
class SequenceSource:
    """The model that translates histories, and the ids of the items that it was trained on."""

    model: SequenceModel
    ids: SemanticIds


@dataclass(frozen=True)
class Sources:
    """Who fills a user's candidates.

    Attributes:
        order: the source of each block of places.
        sequence: the sequence source, where it is one of them.
        record: what sources.json says: names, learned_on, users, quotas.
    """

    order: list[str]
    sequence: SequenceSource | None
    record: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Return the names of the sources, the towers among them."""
        return list(self.record["names"])

    @property
    def placed(self) -> list[str]:
        """Return the names of those that have a place, which alone are asked for candidates."""
        return [name for name in self.names if name in self.order]


def save_sources(sources: Sources, folder: Path) -> dict[str, str]:
    """Write the sources into a model's folder and return the digests of what was fitted."""
    digests = {}
    if sources.sequence is not None:
        save_sequence_model(sources.sequence.model, folder / MODEL)
        save_semantic_ids(sources.sequence.ids, folder / IDS)
        digests = {SEQUENCE: weights_digest(sources.sequence.model), IDS: sources.sequence.ids.digest()}
    write_json(folder / FILE, {**sources.record, "order": sources.order, "digests": digests})
    return digests


def load_sources(folder: Path) -> Sources:
    """Read the sources of a model's folder.

    Raises:
        ValueError: a file is missing or damaged, or the sequence model or its ids are not those that were saved.
    """
    record = read_json(folder / FILE, "train")
    order, digests = record.pop("order"), record.pop("digests")
    if SEQUENCE not in record["names"]:
        return Sources(order, None, record)
    sequence = SequenceSource(load_sequence_model(folder / MODEL).eval(), load_semantic_ids(folder / IDS, "train"))
    if digests != {SEQUENCE: weights_digest(sequence.model), IDS: sequence.ids.digest()}:
        raise ValueError(
            f"{folder / MODEL} is not what was trained (SHA-256 differs): restore the folder, or train again"
        )
    return Sources(order, sequence, record)
