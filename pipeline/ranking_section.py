"""The table [ranking] of a configuration file: the score, the lists' length, and what re-ranking makes of them."""

import datetime as dt
from collections.abc import Collection

from pydantic import Field

from pipeline.sections import Positive, Section, Share

VECTORS = "vectors"
"""The likeness of two items by the two towers, beside those by a column of the items."""


class Cap(Section):
    """How many items of one value the first ranks may hold."""

    column: str = Field(description="categorical column of items, such as category; missing values are not capped")
    most: Positive = Field(description="items of one value")
    within: Positive = Field(description="first ranks that it holds for")


class Rerank(Section):
    """What moves items of a list after they were scored; nothing by default."""

    diversity: float = Field(
        default=0.0, ge=0, lt=1, description="weight of being unlike the items above against the score"
    )
    likeness: list[str] = Field(
        default=[VECTORS],
        min_length=1,
        description="what makes two items alike, the mean of: 'vectors' (cosine of the two towers' vectors), or a "
        "categorical column of items (the same value)",
    )
    caps: list[Cap] = Field(default=[], description="such as { column = 'category', most = 3, within = 20 }")
    exploration: Share = Field(
        default=0.0, lt=1, description="probability that a rank holds a candidate drawn from those left out"
    )
    exploration_within: Positive = Field(default=10, description="first ranks that are explored: what a page shows")

    def is_on(self) -> bool:
        """Return whether lists differ from the order of the scores."""
        return bool(self.diversity or self.caps or self.exploration)

    def columns(self) -> list[str]:
        """Return the columns of items that it reads."""
        alike = [name for name in self.likeness if name != VECTORS] if self.diversity else []
        return list(dict.fromkeys([*alike, *(cap.column for cap in self.caps)]))


class Ranking(Section):
    """Lists for every user."""

    list_length: Positive = 50
    weights: dict[str, float] = Field(
        default={"p_click_and_conversion": 1.0},
        min_length=1,
        description="score = weighted sum of outputs: p_click, p_conversion, p_click_and_conversion, p_<task>, "
        "expected_<task>",
    )
    scored_for: dt.date | None = Field(default=None, description="default: the day after the last test day")
    rerank: Rerank = Rerank()

    def problems(self, candidates: int, columns: Collection[str]) -> list[str]:
        """Return what is wrong with it beside so many candidates and these categorical columns of items."""
        found = [
            f"ranking.rerank.{name} reaches beyond ranking.list_length = {self.list_length}: {value} given"
            for name, value in self._reaches()
            if value > self.list_length
        ]
        if strangers := sorted({*self.rerank.columns(), *self.rerank.likeness} - {VECTORS, *columns}):
            found.append(
                f"ranking.rerank names {strangers}, no categorical columns of items: expected some of "
                f"{sorted(columns)}, and in likeness 'vectors'"
            )
        if len(set(self.rerank.likeness)) < len(self.rerank.likeness):
            found.append(f"ranking.rerank.likeness = {self.rerank.likeness}: expected each name once")
        if self.list_length > candidates:
            found.append(
                f"ranking.list_length = {self.list_length} is above retrieval.candidates = {candidates}: raise the "
                "candidates"
            )
        if self.rerank.exploration and self.list_length == candidates:
            found.append(
                f"ranking.rerank.exploration draws from candidates that a list leaves out, and ranking.list_length = "
                f"retrieval.candidates = {candidates} leaves none: raise the candidates, or shorten the lists"
            )
        return found

    def _reaches(self) -> list[tuple[str, int]]:
        caps = [(f"caps[{number}].within", cap.within) for number, cap in enumerate(self.rerank.caps)]
        return [*caps, *([("exploration_within", self.rerank.exploration_within)] if self.rerank.exploration else [])]
