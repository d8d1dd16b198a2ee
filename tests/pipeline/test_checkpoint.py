"""Where a killed train goes on."""

import logging
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import Checkpoint

MADE_BY = {"configuration": "a", "code": "b"}
TENSORS = {"weights": torch.arange(6.0).view(2, 3), "random": torch.Generator().get_state(), "step": torch.tensor(3)}


def _checkpoint(folder: Path, *, writes: bool = True, **changed: str) -> Checkpoint:
    return Checkpoint(folder / "run" / "ranker.safetensors", {**MADE_BY, **changed}, 100, writes)


def test_a_checkpoint_gives_back_what_was_saved_last(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    assert checkpoint.load() is None
    checkpoint.save({"weights": torch.zeros(1)}, {"epoch": 0})
    checkpoint.save(TENSORS, {"epoch": 1, "curve": [{"training": 0.1 + 0.2}]})
    kept = checkpoint.load()
    assert kept is not None
    assert kept.values == {"epoch": 1, "curve": [{"training": 0.1 + 0.2}]}
    assert set(kept.tensors) == set(TENSORS)
    assert all(torch.equal(kept.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["ranker.safetensors"]


def test_a_process_that_does_not_lead_reads_but_writes_nothing(tmp_path: Path) -> None:
    _checkpoint(tmp_path, writes=False).save(TENSORS, {})
    assert not (tmp_path / "run").exists()
    _checkpoint(tmp_path).save(TENSORS, {"epoch": 1})
    kept = _checkpoint(tmp_path, writes=False).load()
    assert kept is not None
    assert kept.values == {"epoch": 1}


def test_a_checkpoint_of_another_training_is_ignored_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _checkpoint(tmp_path).save(TENSORS, {})
    with caplog.at_level(logging.INFO, "counterpoise"):
        assert _checkpoint(tmp_path, code="c", device="cuda").load() is None
    assert "is ignored: made with another code, device; training begins anew" in caplog.text


def test_half_a_draft_is_no_checkpoint_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    checkpoint.save(TENSORS, {"epoch": 1})
    whole = checkpoint.path.read_bytes()
    checkpoint.path.with_name(".ranker.safetensors.draft").write_bytes(whole[:100])
    kept = checkpoint.load()
    assert kept is not None
    assert kept.values == {"epoch": 1}
    checkpoint.path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"checkpoint .*ranker.safetensors cannot be read .*: remove it and train"):
        checkpoint.load()
