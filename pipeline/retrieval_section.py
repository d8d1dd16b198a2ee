"""The table [retrieval] of a configuration file: the index, and which sources fill the candidates."""

from typing import Literal

from pydantic import Field, field_validator

from pipeline.sections import Positive, Section, Share


class Sequence(Section):
    """The source that translates a user's history into the next clicks and conversions."""

    epochs: Positive = Field(default=4, description="passes over the training days' users")
    levels: Positive = Field(default=3, le=8, description="digits of an item's semantic id, before the last one")
    centres: Positive = Field(default=32, le=4096, description="values of each of those digits")


class Retrieval(Section):
    """Candidates for every user, from the FAISS index and, if named, from further sources."""

    candidates: Positive = 200
    index: Literal["auto", "exact", "ivf", "hnsw"] = "auto"
    exact_below: Positive = Field(default=50_000, description="items under which 'auto' is exact")
    conversion_weight: Share = Field(default=0.5, description="blend of the click and the conversion space")
    filter_seen: Literal["none", "impression", "click", "conversion"] = "click"
    seen_days: Positive = Field(default=30, description="how far back filter_seen looks")
    sources: list[Literal["two_towers", "sequence", "popular"]] = Field(
        default=["two_towers"],
        description="who fills the candidates; of several, each gets the places that the validation day gives it. They "
        "are trained with a model and ship with it",
    )
    quota_users: int = Field(default=4000, ge=2, description="users of the validation day that places are learned on")
    sequence: Sequence = Sequence()

    @field_validator("sources")
    @classmethod
    def _towers_and_others(cls, sources: list[str]) -> list[str]:
        if "two_towers" not in sources or len(set(sources)) < len(sources):
            raise ValueError("expected 'two_towers', and each source once")
        return sources
