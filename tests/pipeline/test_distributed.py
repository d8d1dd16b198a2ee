"""Training on several processes, which torchrun starts on this machine."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import threads, torchrun
from pipeline.checkpoint import Checkpoint
from pipeline.config import load_config
from pipeline.distributed import World, check_devices, current
from pipeline.featurize import days_of, run_folder
from pipeline.fit import check_sharing, fit_of
from pipeline.fit_state import check_places, load_kept
from pipeline.study_data import Study
from pipeline.train import train
from pipeline.workspace import Workspace, read_json

STEPS = Path(__file__).parent / "shared_steps.py"
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
OVERRIDES = {
    "source.time_zone": "Asia/Shanghai",
    "model.hidden": [16, 8],
    "training.batch_size": 64,
    "training.checkpoint_rows": 1,
    "training.epochs": 3,
    "training.shards": 2,
    "retriever.epochs": 2,
}


def _launch(*arguments: object, restarts: int = 0) -> list[str]:
    options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)]


def _copy(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root)
    return Workspace(root)


@pytest.fixture
def shared_steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import what torchrun runs as a script."""
    monkeypatch.syspath_prepend(STEPS.parent)
    return importlib.import_module("shared_steps")


def test_two_processes_have_the_losses_and_the_weights_of_one(
    study_workspace: Workspace, shared_steps: ModuleType, tmp_path: Path
) -> None:
    subprocess.run(_launch(STEPS, study_workspace.root, tmp_path / "made.json"), check=True)
    first, second = (json.loads((tmp_path / f"{rank}-made.json").read_text("utf-8")) for rank in (0, 1))
    assert first == second
    alone = shared_steps.fit_models(study_workspace)
    for name, made in alone.items():
        for point, shared in zip(made["losses"], first[name]["losses"], strict=True):
            assert shared == pytest.approx(point, rel=1e-5), name
        # Adam divides by the size of a gradient: where that is rounding alone, a weight moves by any share of a step.
        apart = np.abs(np.array(made["weights"]) - np.array(first[name]["weights"]))
        assert np.quantile(apart, 0.99) < 1e-4, name


@pytest.fixture(scope="module")
def trained(
    simulated_source: Path, study_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, dict[str, Any]]:
    """Return a featurized workspace, and what training.json says after two undisturbed processes."""
    del simulated_source
    root = tmp_path_factory.mktemp("shared")
    config = load_config(EXAMPLE, OVERRIDES)
    workspace = _copy(study_workspace, root / "workspace")
    days = days_of(config, workspace, None)
    (run,) = (workspace.root / "runs").iterdir()
    run.rename(run_folder(config, workspace, days))
    undisturbed = _copy(workspace, root / "undisturbed")
    subprocess.run(_launch("-m", "pipeline", *_arguments(undisturbed)), check=True)
    return workspace, _record(undisturbed)


def _arguments(workspace: Workspace) -> list[str]:
    sets = [part for key, value in OVERRIDES.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["train", "--config", str(EXAMPLE), "--workspace", str(workspace.root), *sets]


def _folder(workspace: Workspace) -> Path:
    config = load_config(EXAMPLE, OVERRIDES)
    return run_folder(config, workspace, days_of(config, workspace, None))


def _record(workspace: Workspace) -> dict[str, Any]:
    record: dict[str, Any] = read_json(_folder(workspace) / "model" / "training.json", "train")
    return record


def test_train_by_two_processes_is_train_by_one_within_rounding(
    trained: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace = _copy(trained[0], tmp_path / "workspace")
    config = load_config(EXAMPLE, OVERRIDES)
    train(config, workspace, days_of(config, workspace, None))
    alone, shared = _record(workspace), trained[1]
    for model in ("ranker", "logistic_regression", "single_task"):
        for point, other in zip(alone[model], shared[model], strict=True):
            assert other == pytest.approx(point, rel=1e-5), model
    assert shared["retriever"] == pytest.approx(alone["retriever"], rel=1e-5)
    assert shared["labels"] == alone["labels"]


def test_a_killed_process_restarts_and_the_models_are_those_of_undisturbed_ones(
    trained: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace = _copy(trained[0], tmp_path / "workspace")
    checkpoint = _folder(workspace) / "checkpoint"
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        launcher = subprocess.Popen(_launch("-m", "pipeline", *_arguments(workspace), restarts=3), stderr=log)
        while not (checkpoint / "ranker.safetensors").exists():
            assert launcher.poll() is None
            time.sleep(0.001)
        os.kill(_children(launcher.pid)[-1], signal.SIGKILL)
        assert launcher.wait() == 0
    assert "training goes on in epoch" in (tmp_path / "log").read_text("utf-8")
    assert _record(workspace) == trained[1]
    assert not checkpoint.exists()


def _children(process: int) -> list[int]:
    """Return the processes that a process has started with its main thread, in their order."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text("utf-8").split()]


def test_another_command_under_torchrun_is_refused_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "pipeline", "vacuum", "--workspace", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "torchrun started `vacuum` in 2 processes, but only `train` is shared" in ended.stderr


@pytest.mark.parametrize(("size", "rank", "leads"), [("1", "0", True), ("2", "0", True), ("2", "1", False)])
def test_rank_0_leads_and_train_is_not_refused(
    size: str, rank: str, *, leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", rank)
    assert torchrun.leads() == leads
    torchrun.check_command("train")
    if size == "1":
        torchrun.check_command("rank")
    else:
        with pytest.raises(ValueError, match="torchrun started `rank` in 2 processes"):
            torchrun.check_command("rank")


def test_shards_are_dealt_in_equal_numbers() -> None:
    assert [list(World(rank, 2).mine(4)) for rank in (0, 1)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=r"training.shards = 4 cannot be dealt to 3 processes: set it to a multiple"):
        World(0, 3).mine(4)


def test_a_batch_is_a_multiple_of_the_shards(small_study: Study) -> None:
    fit = replace(fit_of(small_study.config), batch_size=100, shards=3)
    with pytest.raises(ValueError, match=r"training.batch_size = 100 is no multiple of training.shards = 3"):
        check_sharing(small_study.spec("ple", 1), fit)


def test_what_looks_at_a_whole_batch_is_refused_on_several_processes(small_study: Study) -> None:
    spec = replace(small_study.spec("ple", 1), load_balance=0.1, expert_norm="batch")
    fit = fit_of(small_study.config)
    fit = replace(fit, shards=2, batch_size=128, balancing=replace(fit.balancing, way="pcgrad"))
    check_sharing(spec, fit)
    expected = r"2 processes cannot share .* set training.task_weights = 'static' and model.load_balance = 0 and model"
    with pytest.raises(ValueError, match=expected):
        check_sharing(spec, fit, World(0, 2))


def test_processes_that_find_different_checkpoints_are_told(tmp_path: Path) -> None:
    subprocess.run(_launch(STEPS.with_name("shared_checkpoint.py"), tmp_path), check=True)
    said = [(tmp_path / f"{rank}.txt").read_text("utf-8") for rank in (0, 1)]
    assert "0.safetensors is not the same to all 2 processes" in said[0]
    assert "[[0, 2, 5], [-1, -1, -1]]): all of them need one workspace on shared storage" in said[1]


def test_one_place_in_all_processes_is_none_to_refuse(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "ranker.safetensors", {}, 1)
    assert load_kept(None) is None
    check_places(checkpoint, torch.tensor([[1, 0, 0]] * 3))
    with pytest.raises(ValueError, match=r"ranker.safetensors is not the same to all 3 processes .*same version"):
        check_places(checkpoint, torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 3]]))


def test_more_processes_than_gpus_are_refused() -> None:
    check_devices(2, 2)
    with pytest.raises(ValueError, match=r"4 processes on a host with 2 GPUs.*--nproc-per-node to 2 or less"):
        check_devices(4, 2)


def test_alone_sums_and_gathered_parts_are_ones_own() -> None:
    values = torch.arange(3.0)
    assert current() == World(0, 1)
    assert current().sum(values) is values
    assert current().gather(values)[0] is values


def test_processes_of_a_host_share_its_cores() -> None:
    cores = threads.share_of_cores(1)
    assert threads.share_of_cores(2) == max(1, cores // 2)
    assert threads.share_of_cores(cores + 1) == 1
