"""Claims about the faults of the simulated event log: how many, of which kind, and that each one is recorded."""

import datetime as dt
import gzip
import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from pipeline.event_faults import DAMAGES, damage_lines, inject_faults
from pipeline.population import SimulatorConfig
from pipeline.simulate import simulate

NO_FAULTS = {"late_share": 0, "duplicate_share": 0, "disorder_share": 0, "malformed_share": 0}
SHARES = {"late_share": 0.04, "duplicate_share": 0.06, "disorder_share": 0.03, "malformed_share": 0.05}
ZONE = ZoneInfo("America/New_York")
CLEAN = SimulatorConfig(
    users=300,
    items=200,
    days=4,
    requests_per_day=800,
    conversion_rate=0.15,
    first_day=dt.date(2026, 3, 7),  # the day after has 23 hours
    time_zone=ZONE.key,
    late_hours_mean=10,
).model_copy(update=NO_FAULTS)
CONFIG = CLEAN.model_copy(update=SHARES)
EVENT_ID = re.compile(rb'^\{"event_id":"([^"]+)"')


@dataclass(frozen=True)
class Line:
    """A line of the event log and where it stands."""

    date: dt.date
    text: bytes

    @cached_property
    def event(self) -> dict[str, object]:
        """Values of the line."""
        event = json.loads(self.text)
        assert isinstance(event, dict)
        return event


@dataclass(frozen=True)
class Simulation:
    """The event log of one world, with and without faults, in the order of the files."""

    folder: Path
    clean: dict[str, Line]
    lines: dict[str, list[Line]]
    injected: pl.DataFrame

    def ids(self, fault: str, *details: str) -> list[str]:
        """Ids of the events with a fault, in one of the details where some are given."""
        rows = self.injected.filter(fault=fault)
        return (rows.filter(pl.col("detail").is_in(details)) if details else rows)["event_id"].to_list()


def lines_of(folder: Path) -> dict[str, list[Line]]:
    found = defaultdict(list)
    for path in sorted((folder / "events").iterdir()):
        for text in gzip.decompress(path.read_bytes()).splitlines():
            match = EVENT_ID.match(text)
            assert match, text
            date = dt.date.fromisoformat(path.name.removesuffix(".jsonl.gz"))
            found[match[1].decode()].append(Line(date, text))
    return dict(found)


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    folder = tmp_path_factory.mktemp("event_faults")
    simulate(CLEAN, folder / "clean")
    simulate(CONFIG, folder / "faulty")
    clean = {event_id: line for event_id, (line,) in lines_of(folder / "clean").items()}
    injected = pl.read_parquet(folder / "faulty" / "injected.parquet")
    return Simulation(folder, clean, lines_of(folder / "faulty"), injected)


def received(line: Line) -> dt.datetime:
    return dt.datetime.fromisoformat(str(line.event["received_time"]))


def recorded(simulation: Simulation) -> dict[str, dt.datetime]:
    return dict(simulation.injected.select("event_id", "received_time").iter_rows())


def changed(event: dict[str, object], clean: dict[str, object]) -> dict[str, object]:
    return {name: event.get(name, "missing") for name in clean if event.get(name, "missing") != clean[name]}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_binomial(count: int, total: int, share: float) -> None:
    assert abs(count - total * share) < 4 * np.sqrt(total * share * (1 - share)), (count, total, share)


@pytest.mark.parametrize("fault", ["late", "duplicate", "disorder", "malformed"])
def test_the_share_of_each_fault_is_the_chosen_one(simulation: Simulation, fault: str) -> None:
    assert_binomial(len(simulation.ids(fault)), len(simulation.clean), SHARES[f"{fault}_share"])


@pytest.mark.parametrize("fault", ["late", "duplicate", "disorder", "malformed"])
def test_a_fault_alone_spares_the_other_kinds(fault: str, tmp_path: Path) -> None:
    simulate(CLEAN.model_copy(update={f"{fault}_share": 0.2, "days": 1}), tmp_path / "out")
    injected = pl.read_parquet(tmp_path / "out" / "injected.parquet")
    assert injected["fault"].unique().to_list() == [fault]
    assert_binomial(injected.height, len(lines_of(tmp_path / "out")), 0.2)


def test_the_kinds_of_duplicates_and_of_damages_are_equally_many(simulation: Simulation) -> None:
    for fault, kinds in (("duplicate", ("copy", "redelivered")), ("malformed", DAMAGES)):
        counts = Counter(simulation.injected.filter(fault=fault)["detail"].to_list())
        assert set(counts) == set(kinds)
        for count in counts.values():
            assert_binomial(count, counts.total(), 1 / len(kinds))


def test_an_event_has_at_most_one_fault_and_is_named_with_its_kind_and_impression(simulation: Simulation) -> None:
    assert simulation.injected["event_id"].is_unique().all()
    for event_id, event, impression_id in simulation.injected.select("event_id", "event", "impression_id").rows():
        clean = simulation.clean[event_id].event
        assert (event, impression_id) == (clean["event"], clean["impression_id"])
    assert simulation.injected["event"].unique().sort().to_list() == ["click", "conversion", "impression"]
    named = simulation.injected.filter(pl.col("detail").is_not_null())
    assert set(named["fault"]) == {"duplicate", "malformed"}


def test_an_event_without_fault_arrives_once_in_its_file_with_its_bytes(simulation: Simulation) -> None:
    faulty = set(simulation.injected["event_id"])
    assert {event_id: lines for event_id, lines in simulation.lines.items() if event_id not in faulty} == {
        event_id: [line] for event_id, line in simulation.clean.items() if event_id not in faulty
    }


def test_every_event_that_is_not_malformed_arrives_with_its_values(simulation: Simulation) -> None:
    assert simulation.lines.keys() == simulation.clean.keys()
    for event_id in simulation.clean.keys() - set(simulation.ids("malformed")):
        for line in simulation.lines[event_id]:
            assert changed(line.event, simulation.clean[event_id].event).keys() <= {"received_time"}


def test_only_the_duplicates_arrive_twice(simulation: Simulation) -> None:
    duplicates = set(simulation.ids("duplicate"))
    for event_id, lines in simulation.lines.items():
        assert len(lines) == (2 if event_id in duplicates else 1)


def test_the_recorded_time_is_that_of_the_first_delivery(simulation: Simulation) -> None:
    times = recorded(simulation)
    for event_id in times.keys() - set(simulation.ids("malformed")):
        assert times[event_id] == received(simulation.lines[event_id][0])
    for event_id in times.keys() - set(simulation.ids("late")):
        assert times[event_id] == received(simulation.clean[event_id])


def test_a_late_event_lies_in_the_file_of_a_later_day(simulation: Simulation) -> None:
    hours = []
    for event_id in simulation.ids("late"):
        (line,), clean = simulation.lines[event_id], simulation.clean[event_id]
        assert line.date == received(line).astimezone(ZONE).date() > clean.date
        day_end = dt.datetime.combine(clean.date + dt.timedelta(days=1), dt.time(), tzinfo=ZONE)
        hours.append((received(line) - day_end.astimezone(dt.UTC)) / dt.timedelta(hours=1))
    assert abs(np.mean(hours) - CONFIG.late_hours_mean) < 4 * CONFIG.late_hours_mean / np.sqrt(len(hours))
    assert max(hours) > 24  # some are later than the next day


def test_a_copy_has_the_bytes_of_its_line_and_lies_in_the_same_file_or_in_a_later_one(simulation: Simulation) -> None:
    copies = simulation.ids("duplicate", "copy")
    for event_id in copies:
        first, second = simulation.lines[event_id]
        assert first.text == second.text == simulation.clean[event_id].text
        assert first.date == simulation.clean[event_id].date <= second.date
    same = sum(len({line.date for line in simulation.lines[event_id]}) == 1 for event_id in copies)
    assert_binomial(same, len(copies), 0.5)


def test_a_redelivered_event_is_received_again_later(simulation: Simulation) -> None:
    for event_id in simulation.ids("duplicate", "redelivered"):
        first, second = simulation.lines[event_id]
        assert first == simulation.clean[event_id]
        assert received(second) > received(first)
        assert second.date == received(second).astimezone(ZONE).date()


def test_only_disordered_lines_and_copies_stand_out_of_order_in_their_file(simulation: Simulation) -> None:
    moved = {*simulation.ids("disorder"), *simulation.ids("duplicate", "copy"), *simulation.ids("malformed")}
    for path in sorted((simulation.folder / "faulty" / "events").iterdir()):
        texts = gzip.decompress(path.read_bytes()).splitlines()
        ids = [match[1].decode() for match in map(EVENT_ID.match, texts) if match]
        kept = [text for event_id, text in zip(ids, texts, strict=True) if event_id not in moved]
        times = [json.loads(text)["received_time"] for text in kept]
        assert times == sorted(times)
    for event_id in simulation.ids("disorder"):
        assert simulation.lines[event_id] == [simulation.clean[event_id]]


def test_disordered_lines_stand_at_random_places(simulation: Simulation) -> None:
    texts = gzip.decompress((simulation.folder / "faulty" / "events" / "2026-03-09.jsonl.gz").read_bytes()).splitlines()
    places = {text: place / len(texts) for place, text in enumerate(texts)}
    in_order = {text: place / len(texts) for place, text in enumerate(sorted(texts, key=received_text))}
    disordered = {line.text for event_id in simulation.ids("disorder") for line in simulation.lines[event_id]}
    moves = [places[text] - in_order[text] for text in disordered & places.keys()]
    assert len(moves) > 100
    assert 0.2 < np.mean(np.abs(moves)) < 0.45  # a third between two even draws
    assert abs(np.mean(moves)) < 0.15


def received_text(line: bytes) -> bytes:
    return line.partition(b'"received_time":')[2]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_malformed_line_breaks_the_rule_it_names(simulation: Simulation, damage: str) -> None:
    damaged = simulation.ids("malformed", damage)
    assert damaged
    for event_id in damaged:
        (line,), clean = simulation.lines[event_id], simulation.clean[event_id]
        assert line.date == clean.date
        if damage == "cut":
            assert line.text == clean.text[: len(clean.text) // 2]
            with pytest.raises(json.JSONDecodeError):
                json.loads(line.text)
        elif damage == "invalid_utf8":
            with pytest.raises(UnicodeDecodeError):
                line.text.decode()
        else:
            assert changed(line.event, clean.event) == BROKEN_VALUES[damage]


BROKEN_VALUES: dict[str, dict[str, object]] = {
    "event_time_word": {"event_time": "yesterday"},
    "event_time_1970": {"event_time": "1970-01-01T00:00:00.000000Z"},
    "times_2099": {"event_time": "2099-01-01T00:00:00.000000Z", "received_time": "2099-01-01T00:00:00.000000Z"},
    "no_ids": {"user_id": "missing", "item_id": "missing", "impression_id": "missing"},
}


def test_damages_leave_the_other_lines_as_they_are() -> None:
    damages = pl.Series([None, "cut", None], dtype=pl.String)
    assert damage_lines(b"first\nsecond\nthird\n", damages) == b"first\nsec\nthird\n"
    assert damage_lines(b"first\n", damages[:1]) == b"first\n"
    assert damage_lines(b"", damages[:0]) == b""


@pytest.mark.parametrize("count", [0, 5])
def test_with_all_shares_zero_the_deliveries_are_the_events(count: int) -> None:
    start = dt.datetime(2026, 3, 7, 12, tzinfo=dt.UTC)
    events = pl.DataFrame(
        {
            "event_id": [f"e{place}" for place in range(count)],
            "event": ["impression"] * count,
            "impression_id": [f"i{place}" for place in range(count)],
            "received_time": pl.Series([start] * count, dtype=pl.Datetime("us", "UTC")),
        },
        schema_overrides={"event_id": pl.String, "event": pl.String, "impression_id": pl.String},
    )
    deliveries, injected = inject_faults(CLEAN, 0, events)
    assert_frame_equal(deliveries.select(events.columns), events)
    assert deliveries["delivered_time"].equals(events["received_time"])
    assert deliveries["damage"].null_count() == count
    assert injected.height == 0


def test_the_same_seed_has_the_same_faults_byte_for_byte(simulation: Simulation, tmp_path: Path) -> None:
    simulate(CONFIG, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(simulation.folder / "faulty")


def test_labelled_log_truth_and_side_tables_do_not_depend_on_the_shares(simulation: Simulation) -> None:
    clean, faulty = digests(simulation.folder / "clean"), digests(simulation.folder / "faulty")
    same = {name for name in clean if clean[name] == faulty[name]}
    labelled = {name for name in clean if name.startswith("impressions")}
    assert len(labelled) == CONFIG.days
    assert labelled | {"truth.parquet", "users.csv", "items.csv"} <= same


@pytest.mark.parametrize("name", SHARES)
def test_a_share_outside_0_to_a_fifth_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"less than or equal to 0\.2"):
        SimulatorConfig.model_validate({name: 0.21})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        SimulatorConfig.model_validate({name: -0.01})
