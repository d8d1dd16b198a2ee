"""The table [text] of a configuration file: the text encoder of items."""

from pydantic import Field

from pipeline.sections import Positive, Section


class Text(Section):
    """A text encoder for items, trained on the training days to tell their category and demand; off by default.

    Measured on new items of simulated worlds it is worse than the words alone (docs/decisions/0005).
    """

    column: str | None = Field(default=None, description="of items.multi: its words, joined, are an item's text")
    category: str | None = Field(
        default=None, description="of items.categorical: a task, and the items whose median demand is beaten; else all"
    )
    width: int = Field(default=8, ge=1, le=64, description="numbers of a text's vector, each an item feature")
    min_impressions: Positive = Field(default=20, description="training impressions for a label of click demand")
    min_clicks: Positive = Field(default=5, description="training clicks for a label of conversion demand")
