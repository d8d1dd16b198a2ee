"""The HTTP service on a real socket of loopback: its answers and its limits."""

import datetime as dt
import http.client
import importlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.config import Config
from pipeline.serve import Service, listen, make_server

URL = "lmdb:feed"
Made = dict[str, Any]


class Answer(NamedTuple):
    """What the service answered."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    def json(self) -> Made:
        """Return the body."""
        return dict(json.loads(self.text))


@pytest.fixture(scope="module")
def versions() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("feed_versions")


def _config(**serve: object) -> Config:
    return Config.model_validate({"name": "x", "source": {"interactions": "*"}, "serve": {"port": 0, **serve}})


@contextmanager
def _running(service: Service) -> Iterator[int]:
    """Serve on a free port in a thread, and return the port."""
    server = make_server(service)
    with listen(service.section) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def _ask(port: int, method: str, path: str, body: object = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    content = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
    connection.request(method, path, content, {"content-type": "application/json"} if body else {})
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read().decode())
    connection.close()
    return answer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, versions: Any) -> Path:
    """A workspace with a published version."""
    root = tmp_path_factory.mktemp("serve")
    versions.write(URL, root, 7)
    return root


@pytest.fixture(scope="module")
def service(root: Path) -> Service:
    """A service whose lists are old, since they are for 2 January 2026, and that takes three users at a time."""
    return Service(_config(max_users=3, max_body_bytes=2000, max_age_days=100_000), root)


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    with _running(service) as port:
        yield port


def test_a_list_is_answered_with_its_version(port: int) -> None:
    found = _ask(port, "GET", "/lists/u00003?limit=2").json()
    age = (dt.datetime.now(dt.UTC).date() - dt.date(2026, 1, 2)).days
    named = {"name": "2026-01-02-00000007", "scored_for": "2026-01-02", "model_version": "7", "age_days": max(0, age)}
    assert found["version"] == named
    outputs = {"score": [5 / 2**15, 4 / 2**15]}
    assert found["lists"] == [
        {"user_id": "u00003", "is_fallback": False, "items": ["v7-3", "v7-4"], "outputs": outputs}
    ]


def test_several_lists_come_in_the_order_asked_and_unknown_users_get_the_fallback_list(port: int) -> None:
    found = _ask(port, "POST", "/lists", {"user_ids": ["u00002", "nobody", "u00001"]}).json()
    assert [one["user_id"] for one in found["lists"]] == ["u00002", "nobody", "u00001"]
    assert [one["is_fallback"] for one in found["lists"]] == [False, True, False]
    assert found["lists"][1] == {
        "user_id": "nobody",
        "is_fallback": True,
        "items": ["v7-0", "v7-1", "v7-2"],
        "outputs": {},
    }


def test_an_id_with_a_slash_or_in_another_script_is_one_id(port: int) -> None:
    for path, user_id in (("/lists/a/b", "a/b"), ("/lists/a%2Fb", "a/b"), ("/lists/%E7%94%A8", "用")):
        assert _ask(port, "GET", path).json()["lists"][0]["user_id"] == user_id


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/lists/", None, 422),
        ("GET", "/lists/u?limit=0", None, 422),
        ("GET", "/lists/u?limit=1001", None, 422),
        ("GET", "/lists/u?limit=x", None, 422),
        ("GET", "/lists/" + "x" * 512, None, 422),
        ("GET", "/lists/a%00b", None, 422),
        ("POST", "/lists", {"user_ids": []}, 422),
        ("POST", "/lists", {"user_ids": ["a"] * 4}, 422),
        ("POST", "/lists", {"user_ids": [1]}, 422),
        ("POST", "/lists", {"user_ids": ["a\nb"]}, 422),
        ("POST", "/lists", {"user_ids": ["a"], "limit": -1}, 422),
        ("POST", "/lists", {"user_ids": ["a"], "limit": True}, 422),
        ("POST", "/lists", {"user_ids": ["a"], "secret": 1}, 422),
        ("POST", "/lists", '{"user_ids": ["\\ud800"]}', 422),
        ("POST", "/lists", "{", 422),
        ("POST", "/lists", b"\xff\xfe", 422),
        ("POST", "/lists", "[" * 1999, 400),
        ("POST", "/lists", " " * 2001, 413),
        ("GET", "/nothing", None, 404),
        ("DELETE", "/lists", None, 405),
        ("GET", "/docs", None, 404),
    ],
)
def test_a_wrong_request_is_refused(port: int, method: str, path: str, body: object, status: int) -> None:
    found = _ask(port, method, path, body)
    assert found.status == status
    assert "detail" in found.json()


def test_a_limit_is_a_whole_number(port: int) -> None:
    for limit in (True, "2"):
        found = _ask(port, "POST", "/lists", {"user_ids": ["u00001"], "limit": limit})
        assert found.json() == {"detail": "body.limit: Value error, expected a whole number"}
    assert _ask(port, "POST", "/lists", {"user_ids": ["u00001"], "limit": 2.0}).status == 200


def test_a_refusal_does_not_repeat_what_was_sent(port: int) -> None:
    assert "s3cret" not in _ask(port, "POST", "/lists", {"user_ids": ["s3cret\n"]}).text


def test_health_says_what_is_served(port: int) -> None:
    found = _ask(port, "GET", "/health")
    assert (found.status, found.json()["status"], found.json()["version"]["model_version"]) == (200, "ok", "7")


def test_metrics_count_requests_latencies_and_fallback_lists(root: Path) -> None:
    with _running(Service(_config(), root)) as port:
        _ask(port, "POST", "/lists", {"user_ids": ["u00001", "nobody"]})
        _ask(port, "GET", "/lists/u00001")
        _ask(port, "GET", "/lists/")
        lines = _ask(port, "GET", "/metrics").text.splitlines()
    assert 'counterpoise_requests_total{route="/lists",status="200"} 1' in lines
    assert 'counterpoise_requests_total{route="/lists/{user_id}",status="422"} 1' in lines
    assert 'counterpoise_request_seconds_bucket{le="+Inf"} 3' in lines
    assert {"counterpoise_lists_total 3", "counterpoise_fallback_lists_total 1", "counterpoise_version_refused 0"} <= {
        *lines
    }
    label = 'name="2026-01-02-00000007",model_version="7",scored_for="2026-01-02"'
    assert f"counterpoise_version_info{{{label}}} 1" in lines


def test_lists_that_are_too_old_are_answered_and_unhealthy(root: Path) -> None:
    with _running(Service(_config(max_age_days=1), root)) as port:
        found = _ask(port, "GET", "/health")
        assert _ask(port, "GET", "/lists/u00001").status == 200
    age = (dt.datetime.now(dt.UTC).date() - dt.date(2026, 1, 2)).days
    assert (found.status, found.headers["retry-after"]) == (503, "60")
    assert found.json()["reason"] == f"the lists are {age} days old, more than 1"


def test_without_lists_it_is_unhealthy_until_some_are_published(versions: Any, tmp_path: Path) -> None:
    with _running(Service(_config(max_age_days=100_000), tmp_path)) as port:
        for path in ("/health", "/lists/u00001"):
            found = _ask(port, "GET", path)
            assert found.status == 503
            assert "retry-after" in found.headers
            assert str(tmp_path) not in found.text
        assert _ask(port, "GET", "/metrics").status == 200
        versions.write(URL, tmp_path, 1)
        assert _ask(port, "GET", "/health").status == 200
        versions.write(URL, tmp_path, 2)
        assert _ask(port, "GET", "/lists/u00001").json()["version"]["model_version"] == "2"


def test_a_refused_version_is_unhealthy_and_the_one_before_is_answered(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    with _running(Service(_config(max_age_days=100_000), tmp_path)) as port:
        assert _ask(port, "GET", "/health").status == 200
        versions.write_damaged(URL, tmp_path, 2)
        found = _ask(port, "GET", "/health")
        assert (found.status, found.json()["reason"]) == (503, "a newer version was refused: see the service's log")
        assert _ask(port, "GET", "/lists/u00001").json()["version"]["model_version"] == "1"
        assert "counterpoise_version_refused 1" in _ask(port, "GET", "/metrics").text


class Slow(Service):
    """A service whose store answers late."""

    def read(self, user_ids: Any, limit: int | None) -> Any:
        """Wait first."""
        time.sleep(0.4)
        return super().read(user_ids, limit)


def test_more_requests_at_once_than_the_limit_are_told_to_come_again(root: Path) -> None:
    with _running(Slow(_config(max_concurrent=2), root)) as port, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: _ask(port, "GET", "/lists/u00001"), range(6)))
    statuses = sorted(answer.status for answer in found)
    assert statuses == [200, 200, 503, 503, 503, 503]
    assert {answer.headers["retry-after"] for answer in found if answer.status == 503} == {"1"}


def test_a_slow_store_is_given_up(root: Path) -> None:
    with _running(Slow(_config(timeout_seconds=0.1), root)) as port:
        found = _ask(port, "GET", "/lists/u00001")
    assert (found.status, found.json()) == (504, {"detail": "it took too long"})


def test_a_body_that_does_not_arrive_is_given_up(root: Path) -> None:
    with (
        _running(Service(_config(timeout_seconds=0.2), root)) as port,
        socket.create_connection(("127.0.0.1", port)) as s,
    ):
        s.sendall(b"POST /lists HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{")
        s.settimeout(5)
        assert s.recv(100).startswith(b"HTTP/1.1 504 ")


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    with listen(_config().serve) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_the_second_write_of_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    with listen(_config().serve) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_an_address_in_use_is_told() -> None:
    with listen(_config().serve) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"cannot listen on 127.0.0.1:{port} \(Address already in use.*\): correct"
        ):
            listen(_config(port=port).serve)


def test_without_the_packages_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "pipeline.serve")
    with pytest.raises(ValueError, match=r"serve needs fastapi and uvicorn: pip install 'counterpoise\[serve\]'"):
        importlib.import_module("pipeline.serve")
