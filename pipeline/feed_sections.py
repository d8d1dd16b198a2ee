"""The tables [feed] and [serve] of a configuration file: where lists are published, and the service that shows them."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.sections import HIDDEN, Positive, Rate, Section, Share


class FeedSection(Section):
    """Where and how lists are published."""

    url: str = Field(
        default="lmdb:feed", description="lmdb:FOLDER, relative to the workspace, or redis://HOST:PORT/DATABASE"
    )
    fields: list[str] = Field(
        default=["score", "p_click", "p_conversion"],
        description="columns of tables/candidates that go with every item, 2 bytes each beside the item's 4",
    )
    fallback_length: Positive = Field(default=100, description="items of the list of users without one of their own")
    min_users_share: Share = Field(default=0.5, description="users of a version against those of the one before")
    when_refused: Literal["keep", "champion"] = Field(
        default="keep",
        description="where the gate refuses a model: published lists stay, or the champion's new ones go",
    )
    audit_versions: Positive = Field(default=14, description="latest versions whose Parquet copy is kept")

    @field_validator("url", mode="before")
    @classmethod
    def _without_a_secret(cls, url: Any) -> Any:
        from pipeline.feed_store import check_redis_url

        if isinstance(url, str) and not url.removeprefix("lmdb:").strip():
            raise ValueError("expected lmdb:FOLDER or redis://HOST:PORT/DATABASE")
        if isinstance(url, str) and not url.startswith("lmdb:"):
            try:
                check_redis_url(url)
            except ValueError as error:
                raise PydanticCustomError(HIDDEN, "{reason}", {"reason": str(error)}) from None
        return url

    @field_validator("fields")
    @classmethod
    def _once_each(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("expected each column once")
        return names


class ServeSection(Section):
    """The read-only HTTP service, and what it takes at most."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(default=8080, description="0: one that is free")
    max_age_days: Annotated[int, Field(ge=0)] = Field(default=2, description="age of lists at which it is unhealthy")
    max_users: Positive = Field(default=100, description="users of one request")
    max_body_bytes: Positive = Field(default=65_536, description="bytes of a request's body")
    max_concurrent: Positive = Field(default=64, description="requests that are answered at once")
    timeout_seconds: Rate = Field(default=5.0, description="time to read and answer a request")
