"""What a study changes in its examples, and what it leaves."""

import numpy as np
import pytest
import torch

from features.encoding import MISSING
from pipeline.study_data import Study
from pipeline.study_variants import Noise, as_click_model, noisy, sampled, shuffled_clicks, with_missing


def _both(days: list) -> np.ndarray:  # type: ignore[type-arg]
    targets = [day.supervision.targets for day in days]
    return np.concatenate([(one.clicks_B * one.conversions_B).numpy() for one in targets])


def _clicks(days: list) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate([day.supervision.targets.clicks_B.numpy() for day in days])


def test_a_smaller_sample_is_part_of_a_larger_one_on_every_day(small_study: Study) -> None:
    tenth, third = (sampled(small_study.training, share, 5) for share in (0.1, 0.3))
    for all_rows, small, large in zip(small_study.training, tenth, third, strict=True):
        assert (len(small.clicks), len(large.clicks)) == (40, 120)
        assert set(small.frame["impression_id"]) < set(large.frame["impression_id"])
        assert small.features.ids_BF.shape == (40, all_rows.features.ids_BF.shape[1])
        assert small.frame["click"].cast(int).to_list() == small.supervision.targets.clicks_B.tolist()
    other = sampled(small_study.training, 0.1, 6)
    assert set(other[0].frame["impression_id"]) != set(tenth[0].frame["impression_id"])


def test_a_full_sample_is_the_same_rows_and_the_smallest_is_one(small_study: Study) -> None:
    (whole, *_), (one, *_) = sampled(small_study.training, 1.0, 1), sampled(small_study.training, 1e-9, 1)
    assert whole.frame.equals(small_study.training[0].frame)
    assert len(one.clicks) == 1


def test_shuffling_clicks_keeps_the_click_rate_of_each_day_and_every_conversion(small_study: Study) -> None:
    shuffled = shuffled_clicks(small_study.training, 3)
    for before, after in zip(small_study.training, shuffled, strict=True):
        assert after.clicks.sum() == before.clicks.sum()
        assert 0.1 < (after.clicks != before.clicks).float().mean() < 0.5
    assert np.array_equal(_both(shuffled), _both(small_study.training))
    assert (_clicks(shuffled)[_both(shuffled) > 0] == 1).all()


def test_shuffled_clicks_of_unconverted_rows_know_nothing_of_the_true_ones(small_study: Study) -> None:
    before, after = _clicks(small_study.training), _clicks(shuffled_clicks(small_study.training, 3))
    free = _both(small_study.training) == 0
    assert abs(np.corrcoef(before[free], after[free])[0, 1]) < 0.1


@pytest.mark.parametrize("kind", ["conversion", "click", "both"])
def test_noise_flips_the_share_of_its_own_labels_and_grows_with_the_level(small_study: Study, kind: Noise) -> None:
    before = small_study.training
    low, high = (noisy(before, kind, share, 9) for share in (0.1, 0.4))
    clicked, both = _clicks(before) > 0, _both(before)
    changed_clicks = [_clicks(days) != _clicks(before) for days in (low, high)]
    if kind == "conversion":
        assert not changed_clicks[1].any()
        flipped = [(_both(days) > 0) != (both > 0) for days in (low, high)]
        assert not flipped[1][~clicked].any()
        assert [part[clicked].mean() for part in flipped] == pytest.approx([0.1, 0.4], abs=0.1)
    else:
        flipped = changed_clicks
        assert not flipped[1][both > 0].any()
        assert [part[both == 0].mean() for part in flipped] == pytest.approx([0.1, 0.4], abs=0.05)
    assert not (flipped[0] & ~flipped[1]).any()
    if kind == "click":
        assert np.array_equal(_both(high), both)
    if kind == "both":
        assert (_both(high)[~clicked] > 0).any(), "a click made by noise may convert by noise"


def test_no_noise_is_the_labels_themselves(small_study: Study) -> None:
    same = noisy(small_study.training, "both", 0.0, 9)
    assert np.array_equal(_clicks(same), _clicks(small_study.training))
    assert np.array_equal(_both(same), _both(small_study.training))


def test_missing_values_are_the_share_of_all_columns_but_the_context(small_study: Study) -> None:
    spec = small_study.spec("ple", 1)
    (before,), (after,) = small_study.measured, with_missing(small_study.measured, 0.3, spec, 4)
    context = [spec.single.index(name) for name in spec.context]
    others = [n for n in range(len(spec.single)) if n not in context]
    assert torch.equal(after.features.ids_BF[:, context], before.features.ids_BF[:, context])
    gone = after.features.ids_BF[:, others] != before.features.ids_BF[:, others]
    assert (after.features.ids_BF[:, others][gone] == MISSING).all()
    assert gone.float().mean() == pytest.approx(0.3, abs=0.05)
    moved = after.features.positions_BF != before.features.positions_BF
    assert (after.features.positions_BF[moved] == spec.bins + 1).all()
    emptied = [(ids == 0).all(1).float().mean() for ids in after.features.pooled.values()]
    assert all(0.2 < share < 1 for share in emptied)


def test_a_click_model_of_click_and_conversion_has_its_labels_and_mask(small_study: Study) -> None:
    changed = as_click_model(small_study.training)
    for before, after in zip(small_study.training, changed, strict=True):
        targets = before.supervision.targets
        assert torch.equal(after.supervision.targets.clicks_B, targets.clicks_B * targets.conversions_B)
        assert torch.equal(after.supervision.targets.click_mask_B, targets.conversion_mask_B)
