"""A small read-only HTTP service of the published lists, as a reference for a backend of your own."""

import datetime as dt
import logging
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from pipeline.config import Config
from pipeline.feed import Feed
from pipeline.feed_records import MAX_USER_BYTES, UserList, Version
from pipeline.feed_sections import ServeSection
from pipeline.serve_limits import Limits
from pipeline.serve_metrics import Metrics

try:
    import uvicorn
    from anyio import to_thread
    from fastapi import FastAPI, Query, Request
    from fastapi import Path as PathParameter
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
except ImportError:
    raise ValueError("serve needs fastapi and uvicorn: pip install 'counterpoise[serve]'") from None

LOG = logging.getLogger("counterpoise")
MAX_LIMIT = 1000
HEADER_BYTES = 16_384
CONNECTIONS_A_REQUEST = 4
"""Idle connections are cheap: so many may be open for each request that is answered at once."""
PRINTABLE = r"^[^\x00-\x1f\x7f]+$"

UserId = Annotated[str, Field(min_length=1, max_length=MAX_USER_BYTES, pattern=PRINTABLE)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="items of a list at most, the best ones")]


def whole(value: Any) -> Any:
    """Refuse what JSON does not call a whole number, and pydantic would take for one.

    Raises:
        ValueError: it is true, false or text.
    """
    if isinstance(value, (bool, str)):
        raise ValueError("expected a whole number")  # noqa: TRY004  # pydantic tells of a ValueError only
    return value


class VersionShown(BaseModel):
    """The version that an answer is from."""

    name: str
    scored_for: dt.date
    model_version: str
    age_days: Annotated[int, Field(ge=0)]


class ListShown(BaseModel):
    """One user's list, best first; outputs by name, one value an item, none for the fallback list."""

    user_id: str
    is_fallback: bool
    items: list[str]
    outputs: dict[str, list[float]]


class Lists(BaseModel):
    """Lists of one version, in the order asked."""

    version: VersionShown
    lists: list[ListShown]


class Health(BaseModel):
    """Whether lists are there and young enough."""

    status: str
    reason: str | None
    version: VersionShown | None


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class Service:
    """Lists, and what is told of them."""

    def __init__(self, config: Config, root: Path) -> None:
        self.section, self.metrics = config.serve, Metrics()
        self.url, self.root, self.zone = config.feed.url, root, ZoneInfo(config.source.time_zone)
        self.feed: Feed | None = None

    def open(self) -> Feed:
        """Return the feed, and open it as soon as something was published.

        Raises:
            ValueError: nothing sound was published, or the store cannot be reached.
        """
        if self.feed is None:
            self.feed = Feed.open(self.url, self.root)
        return self.feed

    def shown(self, version: Version) -> dict[str, Any]:
        """Return what an answer tells of its version."""
        age = version.age_days(dt.datetime.now(self.zone).date())
        names = ("name", "scored_for", "model_version")
        return {**{name: getattr(version, name) for name in names}, "age_days": age}

    def read(self, user_ids: Sequence[str], limit: int | None) -> list[UserList]:
        """Return lists of one version."""
        return self.open().lists(user_ids, limit)

    async def answer(self, user_ids: Sequence[str], limit: int | None) -> JSONResponse:
        """Answer with lists; a thread reads them, since a store may be slow, or a new version has to be checked."""
        found = await to_thread.run_sync(self.read, user_ids, limit, abandon_on_cancel=True)
        self.metrics.lists += len(found)
        self.metrics.fallbacks += sum(one.is_fallback for one in found)
        lists = [
            {"user_id": one.user_id, "is_fallback": one.is_fallback, "items": one.items, "outputs": one.outputs}
            for one in found
        ]
        return JSONResponse({"version": self.shown(found[0].version), "lists": lists})

    def health(self) -> tuple[str | None, Version | None]:
        """Return what is wrong, None where nothing is, and the version that is read, None where there is none."""
        try:
            feed = self.open()
            version = feed.version
        except ValueError as error:
            LOG.warning("health: %s", error)
            return "no lists can be read: see the service's log", None
        if feed.refused is not None:
            LOG.warning("health: %s", feed.refused)
            return "a newer version was refused: see the service's log", version
        age = self.shown(version)["age_days"]
        if age > self.section.max_age_days:
            return f"the lists are {age} days old, more than {self.section.max_age_days}", version
        return None, version


def make_app(service: Service) -> Limits:
    """Return the ASGI application: two ways to ask for lists, health and metrics."""
    app = FastAPI(title="Counterpoise lists", version="1", docs_url=None, redoc_url=None)
    problems: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 404, 413, 422, 503, 504)}
    _add_lists(app, service, problems)
    _add_health(app, service, problems)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        """Say what is wrong with a request without repeating it."""
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(told)}, 422)

    @app.exception_handler(ValueError)
    async def unreadable(_request: Request, error: ValueError) -> JSONResponse:
        """Keep where the store is, and what is wrong with it, to the log."""
        LOG.warning("lists: %s", error)
        return JSONResponse({"detail": "no lists can be read"}, 503, {"retry-after": "10"})

    return Limits(app, service.section, service.metrics)


def _add_lists(app: FastAPI, service: Service, problems: dict[int | str, dict[str, Any]]) -> None:
    wanted = create_model(
        "Wanted",
        __config__=ConfigDict(extra="forbid"),
        user_ids=(list[UserId], Field(min_length=1, max_length=service.section.max_users)),
        limit=(Annotated[Limit, BeforeValidator(whole)], MAX_LIMIT),
    )

    @app.get("/lists/{user_id:path}", response_model=Lists, responses=problems)
    async def of_user(
        user_id: Annotated[UserId, PathParameter()], limit: Annotated[Limit, Query()] = MAX_LIMIT
    ) -> JSONResponse:
        """Return one user's list."""
        return await service.answer([user_id], limit)

    @app.post("/lists", response_model=Lists, responses=problems)
    async def of_users(asked: wanted) -> JSONResponse:  # type: ignore[valid-type]
        """Return the lists of several users, all of one version."""
        return await service.answer(asked.user_ids, asked.limit)  # type: ignore[attr-defined]


def _add_health(app: FastAPI, service: Service, problems: dict[int | str, dict[str, Any]]) -> None:
    @app.get("/health", response_model=Health, responses={503: {"model": Health}, 504: problems[504]})
    async def health() -> JSONResponse:
        """Say which version is served and how old it is; 503 where there is none, it is old, or a newer is refused."""
        reason, version = await to_thread.run_sync(service.health, abandon_on_cancel=True)
        shown = None if version is None else service.shown(version)
        status = {"status": "ok" if reason is None else "failing", "reason": reason, "version": shown}
        return JSONResponse(status, 200 if reason is None else 503, None if reason is None else {"retry-after": "60"})

    @app.get("/metrics", response_class=PlainTextResponse, responses={504: problems[504]})
    async def metrics() -> PlainTextResponse:
        """Return counts for Prometheus."""
        _, version = await to_thread.run_sync(service.health, abandon_on_cancel=True)
        age = 0 if version is None else service.shown(version)["age_days"]
        is_refused = service.feed is not None and service.feed.refused is not None
        text = service.metrics.text(version, age, is_refused=is_refused)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def make_server(service: Service) -> uvicorn.Server:
    """Return a server of the application, which runs on a socket that it is given."""
    section = service.section
    return uvicorn.Server(
        uvicorn.Config(
            make_app(service),
            http="h11",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_A_REQUEST * section.max_concurrent,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=max(1, round(section.timeout_seconds)),
        )
    )


def listen(section: ServeSection) -> socket.socket:
    """Return a socket that listens on serve.host and serve.port.

    Raises:
        ValueError: the address cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in section.host else socket.AF_INET
        listening = socket.create_server((section.host, section.port), family=family)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {section.host}:{section.port} ({error.strerror}): correct serve.host or serve.port"
        ) from None
    # asyncio sets it only on sockets made for IPPROTO_TCP; without it an answer's second write waits 40 ms for an ACK
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def serve(config: Config, root: Path) -> None:
    """Serve the published lists until SIGTERM or Ctrl-C.

    Args:
        config: names the feed, the address and the limits.
        root: the workspace.
    """
    service = Service(config, root)
    reason, version = service.health()
    with listen(config.serve) as listening:
        host, port = listening.getsockname()[:2]
        shown = "no version" if version is None else f"version {version.name} (lists for {version.scored_for})"
        LOG.info("http://%s:%s serves %s%s", host, port, shown, "" if reason is None else f"; {reason}")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)  # uvicorn raises them again once it has ended
        make_server(service).run(sockets=[listening])
