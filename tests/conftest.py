"""Inputs that many tests share: one small simulated source, and configurations of the examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, load_config
from pipeline.simulate import simulate
from pipeline.workspace import write_json
from pipeline.world import SimulatorConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def simulated_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days of a world of 60 users and 50 items, whose days begin at UTC+8."""
    source = tmp_path_factory.mktemp("source") / "simulated"
    world = SimulatorConfig(
        users=60,
        items=50,
        days=5,
        requests_per_day=80,
        slots=5,
        click_rate=0.2,
        conversion_rate=0.3,
        time_zone="Asia/Shanghai",
    )
    simulate(world, source)
    return source


@pytest.fixture(scope="session")
def simulated_config() -> Config:
    """Return the example's configuration in the time zone of the simulated source."""
    return load_config(EXAMPLES / "simulated.toml", {"source.time_zone": "Asia/Shanghai"})


TASKS = ("click", "click_and_conversion", "conversion")


def _interval(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _metrics(auc: float) -> dict[str, Any]:
    return {
        "auc": _interval(auc),
        "gauc": {"value": None, "low": None, "high": None},
        "log_loss": _interval(0.3),
        "normalised_entropy": _interval(0.9),
        "pcoc": _interval(1.02),
        "ece": _interval(0.004),
    }


def _curves(auc: float) -> dict[str, Any]:
    deciles = [(n, 0.05 * n) for n in range(1, 11)]
    return {
        "calibration": [
            {
                "bin": n,
                "rows": 50,
                "positives": n,
                "predicted": p,
                "observed": p + 0.01,
                "low": p - 0.01,
                "high": p + 0.02,
            }
            for n, p in deciles
        ],
        "roc": [[0.0, 0.0], [1 - auc, auc], [1.0, 1.0]],
        "precision_recall": [[0.0, 1.0], [0.5, 0.4], [1.0, 0.1]],
        "average_precision": 0.4321,
        "lift": [[0.1, 4.0], [0.5, 1.7], [1.0, 1.0]],
        "gauc_distribution": {
            "edges": [n / 20 for n in range(21)],
            "users": [n % 7 for n in range(20)],
            "impressions": [n % 11 for n in range(20)],
        },
    }


def _segments(value: str) -> list[dict[str, Any]]:
    scarce = {"auc": None, "gauc": None, "log_loss": None, "pcoc": None, "reason": "9 positives, fewer than 30"}
    rows: list[dict[str, Any]] = []
    for kind, values in {"activity decile": map(str, range(1, 11)), "surface": ["feed", value]}.items():
        rows += [
            {
                "segment": kind,
                "value": name,
                "rows": 500,
                "users": 60,
                "positives": {"click": 90, "click_and_conversion": 35, "conversion": 9},
                "tasks": {"click": _metrics(0.7), "click_and_conversion": _metrics(0.75), "conversion": scarce},
            }
            for name in values
        ]
    return rows


def _diagnostics(auc: float) -> dict[str, Any]:
    gates, experts = ["click", "conversion"], ["shared 1", "shared 2", "click 1"]
    utilisation, similarity = [[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]], [[1.0, 0.4, 0.2], [0.4, 1.0, 0.3], [0.2, 0.3, 1.0]]
    level = {"gates": gates, "experts": experts, "utilisation": utilisation}
    level |= {"entropy": [1.03, 0.67], "normalised_entropy": [0.94, 0.97]}
    cosine = {"mean": 0.1, "standard_error": 0.02, "conflicts": 0.25}
    return {
        "gates": [{"level": n, **level} for n in (1, 2)],
        "cka": [{"level": n, "experts": experts, "similarity": similarity} for n in (1, 2)],
        "dead_units": [{"layer": n, "expert": name, "share": 0.1 * n} for n in (1, 2) for name in experts],
        "gradient_cosine": {"dense": cosine, "embedding": {**cosine, "mean": -0.05}},
        "seesaw": {task: {"auc": _interval(auc - 0.7), "log_loss": _interval(-0.001)} for task in TASKS},
        "verdicts": [
            {"name": "seesaw", "alarm": False, "sentence": "No seesaw: click AUC +0.0012.", "figures": {}},
            {"name": "dead units", "alarm": True, "sentence": "Dead: 61 % of the units of shared 1.", "figures": {}},
        ],
    }


def _lists() -> dict[str, Any]:
    by_k = {"10": _interval(0.12), "50": _interval(0.31)}
    found = {measure: {"click": by_k, "conversion": by_k} for measure in ("recall", "ndcg")}
    lorenz = [[0.0, 0.0], [0.9, 0.1], [1.0, 1.0]]
    return {
        **dict.fromkeys(("retrieval", "candidate_retrieval", "popular_retrieval"), found),
        "retrieval_by_popularity": [
            {"decile": decile, "pairs": 20, "share": 0.25, "recall": by_k} for decile in ("none", "1", "2", "10")
        ],
        "exposure": {"lorenz": lorenz, "coverage": 0.4, "gini": 0.9},
        "lists": {"scored_for": "2026-01-05", "users": 60, "items": 50, "coverage": 0.4, "gini": 0.9},
    }


def _evaluation(day: str, name: str, segment: str, auc: float) -> dict[str, Any]:
    rows = {"impressions": 1200, "clicks": 240, "conversions": 60}
    days = [{"day": f"2026-01-0{n}", "part": "train" if n < 4 else "test", **rows} for n in range(1, 6)]
    importance = [
        {"feature": f"feature_{n}", "log_loss_increase": _interval(0.001 * n), "auc_decrease": _interval(0.002 * n)}
        for n in range(25)
    ]
    by_day = [{"day": f"2026-01-0{n}", "pcoc": 1.01, "low": 0.9, "high": 1.1} for n in (4, 5)]
    tasks = {task: _metrics(auc) for task in TASKS}
    return {
        "tasks": tasks,
        "context_at_reference": {"tasks": tasks},
        "baselines": {"logistic_regression": {"tasks": tasks}},
        "extra_tasks": {"watch_seconds": {"ratio": _interval(1.0), "gini": _interval(0.5)}},
        "curves": {task: _curves(auc) for task in TASKS},
        "calibration_by_day": dict.fromkeys(TASKS, by_day),
        "segments": _segments(segment),
        "diagnostics": _diagnostics(auc),
        **_lists(),
        "importance": dict.fromkeys(TASKS, importance),
        "data": {"days": days, "quarantine": {"click without an impression": 3}, "unattributed": 4},
        "versions": {"polars": "2.1.0", "python": "3.11.9", "tables": {"interactions": 3}, "seed": 7},
        "config": {"name": name, "seed": 7, "model": {"body": "ple"}, "evaluation": {"replicates": 20}},
        "counts": {**rows, "users": 60, "items": 50, "immature": 5, "immature_until": "2026-01-12", "test_days": [day]},
    }


def _watched(day: str, name: str, segment: str) -> dict[str, Any]:
    """Return what a watch found of two days, one of them without lists."""
    measured = {"rows": 400, "positives": 60, "pcoc": _interval(1.1), "log_loss": _interval(0.4)}
    scarce = {"rows": 40, "positives": 6, "pcoc": None, "log_loss": None, "reason": "6 positives: 30 are needed"}
    tasks = {"click": measured, "click_and_conversion": measured, "conversion": scarce}
    shares = {"missing_newest": 0.01, "missing_training": 0.0, "unseen_newest": 0.2, "unseen_training": 0.1}
    columns = [
        {"column": f"feature_{n}", "divergence": 0.03, "floor": 0.01, "excess": 0.03 - 0.005 * n, "rows": 400}
        for n in range(8)
    ]
    listed = {
        "day": day,
        "impressions": 1200,
        "explained": 400,
        "explained_share": 1 / 3,
        "active_users_share": 0.9,
        "version": {"name": f"{day}-0123abcd", "model_version": "3", "run": "some", "published_at": f"{day}T01:00"},
        "list_users": 60,
        "list_items": 20,
        "immature": {},
        "tasks": tasks,
    }
    return {
        "data_set": name,
        "run": f"{day}-0123abcd",
        "watched_at": f"{day}T02:00:00+00:00",
        "newest_day": day,
        "freshness": {"behind_days": 1, "sentence": f"The lists for {day} are live, 1 day older than the data allow."},
        "labels": "weight",
        "days": [{"day": "2026-01-01", "impressions": 9, "reason": "no lists were published for 2026-01-01"}, listed],
        "tasks": tasks,
        "at_reference": tasks,
        "segments": [{"segment": "surface: surface", "value": value, "tasks": tasks} for value in ("feed", segment)],
        "drift": {
            "features": {"days": 5, "columns": columns, "shares": [{"column": segment, **shares}]},
            "predictions": {"days": 4, "day": day, "columns": columns[:1]},
        },
        "quarantine": {"now": {segment: 3}, "runs": [{"run": f"{day}-0123abcd", "rows": {}}]},
        "stages": [{"stage": "train", "seconds": {f"{day}-0123abcd": 1.5}, "usual": None}],
        "alarms": [{"name": "old lists", "sentence": f"Alarm: the lists of {name} are old.", "figure": 1, "limit": 0}],
    }


@pytest.fixture
def evaluated_run(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes the folder of a run with every file and key that its report draws."""

    def write(day: str = "2026-01-05", *, name: str = "shop", segment: str = "search", auc: float = 0.7) -> Path:
        folder = tmp_path / "runs" / f"{day}-0123abcd"
        for part in ("evaluation", "model"):
            (folder / part).mkdir(parents=True)
        epochs = [{"training": 0.6 / n, "validation": 0.7 / n, "click": 0.5 / n} for n in (1, 2, 3)]
        stages = {"train": {"rows_in": 900, "rows_out": 900, "seconds": 1.5, "peak_mib": 300.0}}
        write_json(folder / "evaluation" / "evaluation.json", _evaluation(day, name, segment, auc))
        write_json(folder / "model" / "training.json", {"ranker": epochs, "retriever": [4.0], "digests": {}})
        write_json(folder / "summary.json", {"stages": stages, "digest": "beef"})
        record = {"version": "3", "promoted": True, "decision": "champion: not worse", "data_set": name}
        write_json(folder / "register.json", record)
        write_json(folder / "watch.json", _watched(day, name, segment))
        return folder

    return write
