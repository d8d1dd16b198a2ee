"""The HTML report in a real browser: every chart is drawn, nothing is logged, nothing is wider than a phone."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.html_report import write_comparison, write_run_report
from pipeline.page import Chart, Section, write_page
from pipeline.report_watch import write_watch_page
from pipeline.run import run
from pipeline.workspace import Workspace

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESKTOP = (390, 844), (1280, 900)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
SECONDS = 60
DRAWN = """new Promise(resolve => {
  const root = document.documentElement;
  document.querySelectorAll("details").forEach(each => { each.open = true; });
  const look = () => "drawn" in root.dataset ? resolve(JSON.stringify({
    drawn: +root.dataset.drawn, overflow: root.scrollWidth - root.clientWidth,
    marks: Object.fromEntries([...document.querySelectorAll(".chart")].map(chart =>
      [chart.id, chart.querySelectorAll("svg .role-mark > :is(path[d], line, rect, text, circle)").length])),
    text: document.body.innerText,
  })) : setTimeout(look, 20);
  look();
})"""


@dataclass
class Browser:
    """Headless Chromium, spoken to in its DevTools protocol over a pair of pipes: a window can be as narrow as a phone.

    (`--window-size` stops at 500 pixels.)
    """

    process: subprocess.Popen[bytes]
    send: int
    receive: int
    events: list[dict[str, Any]] = field(default_factory=list)
    rest: bytes = b""
    count: int = 0

    def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a method and return its result; events that come before it are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": arguments} | (
            {"sessionId": session} if session else {}
        )
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def read(self) -> dict[str, Any]:
        """Wait for the next message."""
        while b"\0" not in self.rest:
            part = os.read(self.receive, 1 << 20)
            assert part, "the browser ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        read: dict[str, Any] = json.loads(message)
        return read


@dataclass(frozen=True)
class Opened:
    """A page after its charts were drawn."""

    drawn: int
    overflow: int
    marks: dict[str, int]
    text: str
    logged: list[str]

    def faults(self) -> list[str]:
        """Return what is wrong with the page, one line each."""
        faults = [f"logged: {line}" for line in self.logged]
        faults += [f"chart {name} shows nothing" for name, marks in self.marks.items() if not marks]
        if self.drawn != len(self.marks):
            faults.append(f"{self.drawn} of {len(self.marks)} charts were drawn")
        return [*faults, f"{self.overflow} pixels wider than the window"] if self.overflow else faults


def _installed() -> str:
    for name in NAMES:
        if found := shutil.which(name):
            return found
    if os.environ.get("COUNTERPOISE_REQUIRE_BROWSER"):
        pytest.fail(f"COUNTERPOISE_REQUIRE_BROWSER is set, and none of {', '.join(NAMES)} is installed")
    pytest.skip(
        f"none of {', '.join(NAMES)} is installed to open the page in: .ci/run installs one, and then it must run"
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = [_installed(), *FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]
    theirs_read, send = os.pipe()
    receive, theirs_write = os.pipe()
    # The browser reads from 3 and writes to 4: the shell puts the pipes there, from numbers that are neither.
    passed = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (theirs_read, theirs_write)]
    shell = ["bash", "-c", f'exec "$@" 3<&{passed[0]} 4>&{passed[1]} 2>/dev/null', "bash"]
    process = subprocess.Popen([*shell, *command], pass_fds=passed)
    for pipe in (theirs_read, theirs_write, *passed):
        os.close(pipe)
    opened = Browser(process, send, receive)
    yield opened
    opened.call("Browser.close")
    process.wait(timeout=SECONDS)
    for pipe in (send, receive):
        os.close(pipe)


@pytest.fixture
def open_page(browser: Browser) -> Callable[[Path, tuple[int, int]], Opened]:
    """Return what opens a file in a window of the given pixels and waits for its charts."""

    def open_(path: Path, window: tuple[int, int]) -> Opened:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable", session)
        size = {"width": window[0], "height": window[1], "deviceScaleFactor": 1, "mobile": window == PHONE}
        browser.call("Emulation.setDeviceMetricsOverride", session, **size)
        browser.events.clear()
        browser.call("Page.navigate", session, url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.read())
        answer = browser.call("Runtime.evaluate", session, expression=DRAWN, awaitPromise=True)
        logged = [line for event in browser.events for line in _complaint(event, path)]
        browser.call("Target.closeTarget", targetId=target)
        return Opened(**json.loads(answer["result"]["value"]), logged=logged)

    return open_


def _complaint(event: dict[str, Any], path: Path) -> list[str]:
    """Return what the page logged or asked the network for, if the event tells of it."""
    method, values = event["method"], event["params"]
    if method == "Runtime.consoleAPICalled":
        return [f"{values['type']} {[each.get('value') for each in values['args']]}"]
    if method == "Runtime.exceptionThrown":
        return [f"exception {values['exceptionDetails']['text']}"]
    if method == "Log.entryAdded":
        return [f"{values['entry']['level']} {values['entry']['text']}"]
    if method == "Network.requestWillBeSent":
        url = values["request"]["url"]
        return [] if url == path.resolve().as_uri() or url.startswith("data:") else [f"request of {url}"]
    return []


@pytest.mark.parametrize("window", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_chart_of_a_complete_report_is_drawn_and_nothing_is_logged_or_too_wide(
    evaluated_run: Callable[..., Path], open_page: Callable[..., Opened], window: tuple[int, int]
) -> None:
    evaluated_run("2026-01-04")
    folder = evaluated_run("2026-01-05")
    page = folder / "evaluation" / "report.html"
    write_run_report(folder, page)
    opened = open_page(page, window)
    assert opened.faults() == []
    assert len(opened.marks) > 30
    assert "No seesaw" in opened.text
    assert {"watch-pcoc-0", "watch-drift-features-0", "watch-drift-predictions-0"} <= set(opened.marks)
    assert "No lists were published for 2026-01-01." in opened.text
    assert "Alarm: the lists of shop are old." in opened.text


@pytest.mark.parametrize("window", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_chart_of_two_runs_is_drawn(
    evaluated_run: Callable[..., Path], open_page: Callable[..., Opened], window: tuple[int, int]
) -> None:
    first, second = evaluated_run("2026-01-04", auc=0.6), evaluated_run("2026-01-05")
    write_comparison(second, first, second / "both.html")
    opened = open_page(second / "both.html", window)
    assert opened.faults() == []
    assert first.name in opened.text


@pytest.fixture(scope="module")
def real_report(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the whole pipeline on five small days."""
    overrides = {
        "source.time_zone": "Asia/Shanghai",
        "evaluation.replicates": 20,
        "training.epochs": 2,
        "gate.pcoc": (0.01, 100.0),  # the model of a world this small need not be good
        "gate.tolerance": {"log_loss": 9.0, "gauc": 1.0, "recall": 1.0, "coverage": 1.0},
        "gate.blocking_alarms": [],
    }
    config = load_config(Path(__file__).parent.parent / "examples" / "simulated.toml", overrides)
    return Path(run(config, Workspace(tmp_path_factory.mktemp("workspace")), simulated_source)["report"])


@pytest.mark.parametrize("window", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_chart_of_a_real_run_is_drawn_and_no_part_is_missing(
    real_report: Path, open_page: Callable[..., Opened], window: tuple[int, int]
) -> None:
    opened = open_page(real_report, window)
    assert opened.faults() == []
    assert "issing:" not in opened.text
    assert "champion: the first version" in opened.text


@pytest.mark.parametrize("window", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_of_a_watch_stands_alone(
    evaluated_run: Callable[..., Path], open_page: Callable[..., Opened], window: tuple[int, int]
) -> None:
    found = json.loads((evaluated_run() / "watch.json").read_text(encoding="utf-8"))
    page = evaluated_run("2026-01-04") / "watch.html"
    write_watch_page(found, page)
    opened = open_page(page, window)
    assert opened.faults() == []
    assert "Watch of shop, 2026-01-05" in opened.text
    assert "1 day older than the data allow" in opened.text


def test_names_from_the_data_are_shown_as_they_are_and_run_nothing(
    evaluated_run: Callable[..., Path], open_page: Callable[..., Opened]
) -> None:
    hostile = "</script><script>console.error(1)</script><img src=x onerror=console.error(2)>"
    folder = evaluated_run(name=hostile, segment=hostile)
    write_run_report(folder, folder / "report.html")
    opened = open_page(folder / "report.html", DESKTOP)
    assert opened.faults() == []
    assert opened.text.count(hostile) > 1


def test_a_chart_that_cannot_be_drawn_is_noticed(tmp_path: Path, open_page: Callable[..., Opened]) -> None:
    good = {"data": {"values": [{"x": 1}]}, "mark": "point", "encoding": {"x": {"field": "x", "type": "quantitative"}}}
    broken, empty = {**good, "mark": "no such mark"}, {**good, "data": {"values": []}}
    charts = [Chart(spec, name, name) for name, spec in {"good": good, "broken": broken, "empty": empty}.items()]
    write_page(tmp_path / "page.html", "Planted", [Section("Charts", charts)])
    faults = open_page(tmp_path / "page.html", DESKTOP).faults()
    assert "chart broken shows nothing" in faults
    assert "chart empty shows nothing" in faults
    assert "2 of 3 charts were drawn" in faults
    assert any(fault.startswith("logged: error") for fault in faults)


def test_a_page_that_is_too_wide_is_noticed(tmp_path: Path, open_page: Callable[..., Opened]) -> None:
    wide = {"data": {"values": [{}]}, "mark": "bar", "width": 100}
    path = tmp_path / "page.html"
    write_page(path, "Planted", [Section("Charts", [Chart(wide, "wide", "wide")])])
    html = path.read_text(encoding="utf-8").replace("<main>", '<main><div style="width:600px">wide</div>')
    path.write_text(html, encoding="utf-8")
    assert any("pixels wider than the window" in fault for fault in open_page(path, PHONE).faults())
    assert open_page(path, DESKTOP).faults() == []
