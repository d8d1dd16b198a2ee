"""Which of many figures of a challenger are shown to be out of what is allowed, on one set of resampled users.

Shape suffixes: N rows, U users, R bootstrap replicates, L looks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import CONFIDENCE, Floats, resamples, sum_by, summarise
from pipeline.significance import SIGNIFICANCE, holm

LEAST_USERS = 30
"""Of fewer users too few distinct resamples exist for the small p-values that many looks ask for."""
DRAWS_PER_LOOK = 100
"""The smallest p-value, times the looks that Holm multiplies it by, is then 0.01: a fifth of what refuses."""

Verdict = Literal["passed", "failed", "warned", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question of the gate, its figures and its answer; a figure that does not exist is None."""

    name: str
    verdict: Verdict
    challenger: float | None = None
    reference: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    allowed: str = ""
    p_holm: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Look:
    """A figure that is a ratio of sums over users, or the difference of two with the same denominators.

    Attributes:
        name: what is looked at.
        challenger_U: numerators of the challenger.
        reference_U: those of what it is held against; None for a figure that is held against bounds.
        denominators_U: of both.
        least: the least allowed value of the figure.
        most: the most.
    """

    name: str
    challenger_U: Floats
    reference_U: Floats | None
    denominators_U: Floats
    least: float = -np.inf
    most: float = np.inf

    @property
    def allowed(self) -> str:
        """Say what is allowed."""
        if np.isfinite(self.least) and np.isfinite(self.most):
            return f"{self.least:g} to {self.most:g}"
        return f"at most {self.most:+g}" if np.isfinite(self.most) else f"at least {self.least:+g}"


def judge(looks: Sequence[Look], *, replicates: int, seed: int) -> list[Check]:
    """Say of each look whether it is shown to be out of bounds, in the order given.

    All looks share the resamples of users, of which there are at least `DRAWS_PER_LOOK` a look. Holm's adjustment of
    their p-values, see `_p_values`, keeps the chance that any look fails whose figure is within bounds below 0.05,
    however the looks depend on each other. So fewer than 5 % of a failed look's draws reach the bound that its figure
    is beyond.
    """
    if not looks:
        return []
    values_1L, draws_RL = _drawn(looks, max(replicates, DRAWS_PER_LOOK * len(looks)), seed)
    low_L, high_L = np.quantile(draws_RL, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    p_holm = holm(_p_values(looks, draws_RL))
    return [
        _check(look, float(values_1L[0, n]), (float(low_L[n]), float(high_L[n])), p_holm[n])
        for n, look in enumerate(looks)
    ]


def _p_values(looks: Sequence[Look], draws_RL: Floats) -> list[float]:
    """Return for each look the chance of a figure this far out of bounds if the truth were at the nearer bound.

    It is the share of draws that do not lie beyond the nearer bound, counted with one more (Davison and Hinkley 1997,
    section 4.2), and that of draws beyond the other: from the truth at one of two close bounds the figure may be as far
    out on either side. Draws beyond the other bound speak for no defect, so they never make the p-value smaller.
    """
    least_L, most_L = (np.array(bounds) for bounds in zip(*((look.least, look.most) for look in looks), strict=True))
    above_L = (draws_RL <= most_L).sum(axis=0) + (draws_RL <= least_L).sum(axis=0)
    below_L = (draws_RL >= least_L).sum(axis=0) + (draws_RL >= most_L).sum(axis=0)
    p_values_L: Floats = np.minimum((np.minimum(above_L, below_L) + 1) / (len(draws_RL) + 1), 1.0)
    return [float(p_value) for p_value in p_values_L]


def _drawn(looks: Sequence[Look], replicates: int, seed: int) -> tuple[Floats, Floats]:
    """Return each look's figure on the sample (1, L) and on resamples of users (R, L)."""
    denominators_UL = np.stack([look.denominators_U for look in looks], axis=1)
    nothing_U = np.zeros(len(denominators_UL))
    numerators_UL = np.stack(
        [look.challenger_U - (nothing_U if look.reference_U is None else look.reference_U) for look in looks], axis=1
    )
    whole_1U = np.ones((1, len(denominators_UL)))
    draws = [
        counts_RU @ numerators_UL / (counts_RU @ denominators_UL)
        for counts_RU in resamples(denominators_UL, replicates, seed)
    ]
    return whole_1U @ numerators_UL / (whole_1U @ denominators_UL), np.concatenate(draws)


def _check(look: Look, value: float, interval: tuple[float, float], p_holm: float) -> Check:
    low, high = interval
    outside = value < look.least or value > look.most
    failed = outside and p_holm < SIGNIFICANCE
    total = look.denominators_U.sum()
    reference = None if look.reference_U is None else float(look.reference_U.sum() / total)
    found = (
        f"{value:+.5f} [{low:+.5f}, {high:+.5f}]" if reference is not None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
    )
    return Check(
        name=look.name,
        verdict="failed" if failed else "passed",
        challenger=float(look.challenger_U.sum() / total),
        reference=reference,
        difference=None if reference is None else value,
        low=low,
        high=high,
        allowed=look.allowed,
        p_holm=p_holm,
        reason=f"{found}, {look.allowed} is allowed, adjusted p {p_holm:.3g}",
    )


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Rows of one task in its space, as two models predict them, all of shape (N,).

    Attributes:
        labels: whether a positive is known.
        targets: 0, 1, or above 1 where an early conversion also stands for those that are not known yet.
        users: integer codes below the number of users.
        challenger: probabilities.
        reference: those of what the challenger is held against.
    """

    labels: NDArray[np.bool_]
    targets: Floats
    users: NDArray[np.int64]
    challenger: Floats
    reference: Floats

    def of(self, rows: NDArray[np.bool_]) -> "Trials":
        """Select rows by a mask (N,)."""
        return Trials(
            labels=self.labels[rows],
            targets=self.targets[rows],
            users=self.users[rows],
            challenger=self.challenger[rows],
            reference=self.reference[rows],
        )

    def too_few(self, min_positives: int) -> str | None:
        """Say why these rows show nothing; None where they may."""
        positives, users = int(self.labels.sum()), int(np.unique(self.users).size)
        negatives = len(self.labels) - positives
        if min(positives, negatives) < min_positives:
            return f"{positives} positives and {negatives} negatives: {min_positives} of each are needed"
        return f"{users} users: {LEAST_USERS} are needed" if users < LEAST_USERS else None


def log_loss_look(name: str, trials: Trials, users: int, tolerance: float) -> Look:
    """Look at the difference of log-losses, in nats a row, clipped as in `pipeline.metrics`."""
    return Look(
        name=name,
        challenger_U=sum_by(trials.users, _losses(trials.targets, trials.challenger), groups=users),
        reference_U=sum_by(trials.users, _losses(trials.targets, trials.reference), groups=users),
        denominators_U=sum_by(trials.users, np.ones(len(trials.users)), groups=users),
        most=tolerance,
    )


def pcoc_look(name: str, trials: Trials, users: int, bounds: tuple[float, float]) -> Look:
    """Look at the challenger's predicted over the observed number of positives."""
    return Look(
        name=name,
        challenger_U=sum_by(trials.users, trials.challenger, groups=users),
        reference_U=None,
        denominators_U=sum_by(trials.users, trials.targets, groups=users),
        least=bounds[0],
        most=bounds[1],
    )


def gauc_look(name: str, trials: Trials, users: int, tolerance: float) -> Look | None:
    """Look at the difference of the GAUC of `pipeline.metrics`; None where too few users have both classes.

    It counts labels as known: a conversion that is still to come is a negative for both models.
    """
    sums = [
        summarise(labels=trials.labels, probabilities=one, users=trials.users).sums
        for one in (trials.challenger, trials.reference)
    ]
    found = np.unique(trials.users)
    grouped_U, challenger_U, reference_U = (np.zeros(users) for _ in range(3))
    grouped_U[found], challenger_U[found], reference_U[found] = sums[0][:, 4], sums[0][:, 5], sums[1][:, 5]
    if np.count_nonzero(grouped_U) < LEAST_USERS:
        return None
    return Look(
        name=name, challenger_U=challenger_U, reference_U=reference_U, denominators_U=grouped_U, least=-tolerance
    )


def _losses(targets_N: Floats, probabilities_N: Floats) -> Floats:
    epsilon = np.finfo(np.float64).eps
    clipped_N = np.clip(probabilities_N, epsilon, 1 - epsilon)
    losses_N: Floats = -(targets_N * np.log(clipped_N) + (1 - targets_N) * np.log1p(-clipped_N))
    return losses_N
