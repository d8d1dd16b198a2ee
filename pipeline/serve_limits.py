"""What the HTTP service refuses before it does any work: bodies too large, too many requests at once, too slow ones."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pipeline.feed_sections import ServeSection
from pipeline.serve_metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ALWAYS_ANSWERED = {"/health", "/metrics"}
BUSY = (503, "too many requests at once: try again")
TOO_LARGE = (413, "the body is too large")
TOO_SLOW = (504, "it took too long")


class Limits:
    """An ASGI application around another one, that also counts and times what is answered."""

    def __init__(self, app: App, section: ServeSection, metrics: Metrics) -> None:
        self.app, self.section, self.metrics = app, section, metrics
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        answer = Answer(send)
        is_busy = self.running >= self.section.max_concurrent and scope["path"] not in ALWAYS_ANSWERED
        self.running += 1
        try:
            async with asyncio.timeout(self.section.timeout_seconds):
                await (answer.refuse(*BUSY) if is_busy else self._answer(scope, receive, answer))
        except TimeoutError:
            await answer.refuse(*TOO_SLOW)
        finally:
            self.running -= 1
            route = getattr(scope.get("route"), "path_format", "none")
            self.metrics.count_request(route, answer.status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, answer: "Answer") -> None:
        body = await _read(receive, self.section.max_body_bytes)
        if body is None:
            await answer.refuse(*TOO_LARGE)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, answer.send)


class Answer:
    """What is sent back, of which the status is kept; 0 as long as nothing was sent."""

    def __init__(self, send: Send) -> None:
        self.pass_on, self.status = send, 0

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.pass_on(message)

    async def refuse(self, status: int, detail: str) -> None:
        """Answer with a refusal, unless an answer has begun."""
        if self.status:
            return
        body = json.dumps({"detail": detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == BUSY[0]:
            headers.append((b"retry-after", b"1"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    """Return the body; None where it is too large."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > max_bytes:
            return None
        if not message.get("more_body", False):
            return body
