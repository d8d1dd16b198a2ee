"""What a study reads of a featurized run."""

import numpy as np
import polars as pl
import pytest

from pipeline.config import Config
from pipeline.study_data import Study, load_study
from pipeline.workspace import Workspace


def test_a_study_measures_on_the_validation_day_unless_it_is_told_to_test(
    small_study: Study, simulated_config: Config, study_workspace: Workspace
) -> None:
    tested = load_study(simulated_config, study_workspace, on="test")
    assert [day.frame["date"].unique().to_list() for day in small_study.measured] == [
        [day] for day in small_study.days.validation
    ]
    assert tested.measured_days() == tested.days.test
    assert tested.measured[0].frame["date"].unique().to_list() == tested.days.test
    assert {day.frame["date"].max() for day in tested.training} == set(tested.days.train)
    assert small_study.source != tested.source


def test_measured_labels_are_those_of_today_and_trained_ones_those_known_before_the_test_day(
    small_study: Study,
) -> None:
    cutoff = small_study.plan.start_of(small_study.days.test[0])
    (selected,), (measured,) = small_study.validation, small_study.measured
    assert selected.frame["impression_id"].equals(measured.frame["impression_id"])
    assert selected.conversions.sum() < measured.conversions.sum()
    late = pl.Series((measured.conversions != selected.conversions).numpy())
    assert 0 < late.sum() == int((measured.conversions - selected.conversions).sum())
    assert cutoff > measured.frame["event_time"].max()  # type: ignore[operator]


def test_users_and_labels_of_the_measured_rows_are_in_their_order(small_study: Study) -> None:
    rows = small_study.rows()
    assert len(rows.clicks) == 400
    assert np.array_equal(rows.clicks, np.concatenate([day.clicks.numpy() for day in small_study.measured]) > 0)
    assert rows.users.max() + 1 == small_study.measured[0].frame["user_id"].n_unique()


def test_a_configuration_that_was_not_featurized_needs_the_name_of_a_run(
    simulated_config: Config, study_workspace: Workspace
) -> None:
    other = simulated_config.model_copy(update={"seed": 77})
    with pytest.raises(ValueError, match="run `counterpoise featurize` first"):
        load_study(other, study_workspace)
    run = next((study_workspace.root / "runs").iterdir()).name
    assert load_study(other, study_workspace, run=run).config.seed == 77


def test_a_run_of_other_features_is_refused(simulated_config: Config, study_workspace: Workspace) -> None:
    features = simulated_config.features.model_copy(update={"counters": simulated_config.features.counters[:1]})
    assert load_study(
        simulated_config.model_copy(update={"features": features}), study_workspace, run=_run(study_workspace)
    )
    half_life = [simulated_config.features.counters[0].model_copy(update={"half_lives_days": [3.0]})]
    changed = simulated_config.features.model_copy(update={"counters": half_life})
    with pytest.raises(ValueError, match=r"has no encoding of \['user_id__click_and_conversion_rate_3d'"):
        load_study(
            simulated_config.model_copy(update={"features": changed}), study_workspace, run=_run(study_workspace)
        )


def _run(workspace: Workspace) -> str:
    return next((workspace.root / "runs").iterdir()).name


def test_a_mixture_of_shared_experts_has_as_many_as_the_others_in_all(small_study: Study) -> None:
    experts = {body: small_study.spec(body, 1).experts for body in ("ple", "moe", "mmoe")}
    sizes = small_study.config.model
    assert experts == {
        "ple": sizes.experts,
        "moe": sizes.experts + 2 * sizes.task_experts,
        "mmoe": sizes.experts + 2 * sizes.task_experts,
    }
