"""The table [training] of a configuration file: how the ranker is fitted."""

from typing import Literal

from pydantic import Field

from pipeline.sections import Positive, Rate, Section, Share


class Training(Section):
    """How the ranker is fitted."""

    epochs: Positive = 1
    batch_size: Positive = 2048
    learning_rate: Rate = 1e-3
    embedding_learning_rate: Rate = 1e-3
    baseline_learning_rate: Rate = Field(default=5e-3, description="of the logistic-regression baseline")
    weight_decay: float = Field(default=0.0, ge=0)
    conversion_weight: Rate = Field(
        default=1.0, description="weight of the click-and-conversion loss; with click_only of the conversion loss"
    )
    conversion_loss: Literal["esmm", "click_only", "escm2_ips", "escm2_dr", "dcmt"] = Field(
        default="esmm",
        description="how conversions are supervised: over all impressions (esmm), over clicked ones (click_only), or "
        "both with a correction for what is clicked; escm2_dr is unstable",
    )
    debiasing_weight: Rate = Field(default=1.0, description="of the losses that escm2_ips, escm2_dr and dcmt add")
    counterfactual_prior_weight: float = Field(
        default=0.001, ge=0, description="dcmt: how much factual and counterfactual have to sum to 1, within the former"
    )
    propensity_floor: Share = Field(
        default=0.05, gt=0, description="smallest click probability that a corrected loss is divided by"
    )
    self_normalised: bool = Field(default=True, description="scales the corrections of a batch to sum to its rows")
    propensity_clip: float | None = Field(
        default=None,
        ge=1,
        description="largest weight of an impression in the ranker's losses, 1 / propensity of the log; not set: all "
        "weigh alike",
    )
    task_weights: Literal["static", "uncertainty", "gradnorm", "pcgrad"] = Field(
        default="static", description="how the tasks' losses are balanced, beyond the weights that are set"
    )
    task_weight_learning_rate: Rate = Field(default=0.01, description="of the weights, with uncertainty and gradnorm")
    gradnorm_asymmetry: float = Field(
        default=1.5, ge=0, description="gradnorm: how much tasks that learn slowly are pulled up"
    )
    control: bool = Field(
        default=True, description="also fits separate single-task networks, to say whether a task pays for sharing"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    shards: Positive = Field(
        default=1,
        description="parts that a batch takes equal numbers of rows from; torchrun deals them to processes, any number "
        "of which that divides them trains the same model",
    )
    checkpoint_rows: Positive = Field(
        default=5_000_000, description="trained on between two checkpoints within an epoch; changes no result"
    )
    warm_start: bool = Field(default=False, description="begin from the champion's weights; same as --warm-start")
    new_ids: Literal["mean", "seed"] = Field(default="mean", description="where ids begin that the champion lacks")
