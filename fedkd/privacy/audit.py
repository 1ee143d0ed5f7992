"""What an experiment proves about a privacy guarantee: lower bounds at a confidence, never that the guarantee holds.

Each bound is a function of ``alpha``: were the claim true, the bound would be above it with a probability of at most
``alpha``. Rules (which statistic, which threshold, how many guesses) are chosen on other trials than are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, betainccinv, expit, ndtri

from fedkd.privacy.accounting import MIN_DELTA, gaussian_epsilon

Scores = NDArray[np.float64]
Bound = Callable[[float], float]

CANDIDATES = 256
"""Thresholds that are compared for each statistic, at the most."""

CHOOSING = 1e-3
"""The ``alpha`` by which rules are compared before they are counted."""

LARGEST_EPSILON = 64.0
"""No one-run bound is looked for above it."""


# -- findings ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What one experiment has counted: ``bound`` gives the lower bound on ``quantity`` at any ``alpha``."""

    audit: str
    quantity: str
    claim: float
    threat_model: str
    bound: Bound
    observed: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A lower bound at a confidence. That it is below the claim verifies nothing; above it, the claim is refuted."""

    audit: str
    quantity: str
    lower_bound: float
    confidence: float
    threat_model: str
    claim: float
    observed: Mapping[str, Any]

    @property
    def refutes(self) -> bool:
        """Whether the lower bound is above the claim."""
        return self.lower_bound > self.claim

    @property
    def sentence(self) -> str:
        """The finding in words."""
        return (
            f"lower bound {self.lower_bound:.4g} on {self.quantity} at confidence {self.confidence:.6g}, "
            f"threat model: {self.threat_model}; claim {self.claim:.4g}"
        )


def judge(evidence: Sequence[Evidence], confidence: float) -> list[Finding]:
    """Findings that hold all together at ``confidence``: each at 1 - (1 - confidence) / number (Bonferroni)."""
    if not 0 < confidence < 1:
        raise ValueError("a confidence is between 0 and 1")
    alpha = (1 - confidence) / max(1, len(evidence))
    return [
        Finding(e.audit, e.quantity, e.bound(alpha), 1 - alpha, e.threat_model, e.claim, e.observed) for e in evidence
    ]


# -- two data sets, many releases --------------------------------------------------------------------------------------


def upper_limit(successes: Any, trials: Any, alpha: float) -> Any:
    """One-sided limit of a binomial probability, too low with probability at most ``alpha`` (Clopper & Pearson 1934,
    doi:10.1093/biomet/26.4.404). Takes numbers or arrays."""
    failures = np.subtract(trials, successes)
    return np.where(failures > 0, betainccinv(np.add(successes, 1.0), np.maximum(failures, 1.0), alpha), 1.0)


@dataclass(frozen=True)
class Errors:
    """How a fixed test went that says on which of two neighbours D and D' a release was made: numbers, or arrays for
    several tests. A false positive says D' of a release on D, and ``negatives`` is how many there were on D."""

    false_positives: Any
    negatives: Any
    false_negatives: Any
    positives: Any

    def limits(self, alpha: float) -> tuple[Any, Any]:
        """Upper limits of both error rates, which hold together at 1 - ``alpha``."""
        return (
            upper_limit(self.false_positives, self.negatives, alpha / 2),
            upper_limit(self.false_negatives, self.positives, alpha / 2),
        )

    def epsilon(self, alpha: float, delta: float) -> Any:
        """For any mechanism: TPR <= e^epsilon FPR + delta, and the same for negatives (Kairouz, Oh & Viswanath 2015,
        arXiv:1311.0776, section 2); 0 where nothing is shown."""
        fpr, fnr = self.limits(alpha)
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = np.maximum((1 - fnr - delta) / fpr, (1 - fpr - delta) / fnr)
            return np.log(np.maximum(odds, 1.0))

    def mu(self, alpha: float) -> Any:
        """For a mechanism that claims mu-GDP: mu >= Phi^-1(1 - FPR) - Phi^-1(FNR) (Nasr et al. 2023,
        arXiv:2302.07956); 0 where nothing is shown."""
        fpr, fnr = self.limits(alpha)
        return np.maximum(-ndtri(fpr) - ndtri(fnr), 0.0)


@dataclass(frozen=True)
class Rule:
    """Says D' where ``sign`` times a statistic is above a threshold."""

    statistic: int
    sign: int
    threshold: float

    def errors(self, negative: Scores, positive: Scores) -> Errors:
        """On statistics [n, s] of releases on D and of releases on D'."""
        said = [self.sign * scores[:, self.statistic] > self.threshold for scores in (negative, positive)]
        return Errors(int(said[0].sum()), len(negative), int((~said[1]).sum()), len(positive))


def choose_rule(negative: Scores, positive: Scores, bound: Callable[[Errors], Any]) -> Rule:
    """The rule with the largest bound on these statistics [n, s], which must not be counted again."""
    best, chosen = -math.inf, Rule(0, 1, math.inf)
    for statistic in range(negative.shape[1]):
        for sign in (1, -1):
            low, high = (np.sort(sign * scores[:, statistic]) for scores in (negative, positive))
            thresholds = _between(np.concatenate([low, high]))
            errors = Errors(
                len(low) - np.searchsorted(low, thresholds, side="right"),
                len(low),
                np.searchsorted(high, thresholds, side="right"),
                len(high),
            )
            advantage = 1 - errors.false_positives / len(low) - errors.false_negatives / len(high)
            bounds = np.asarray(bound(errors)) + 1e-6 * advantage  # where nothing is shown, the best guess
            if len(bounds) and bounds.max() > best:
                best, chosen = bounds.max(), Rule(statistic, sign, float(thresholds[bounds.argmax()]))
    return chosen


def _between(values: Scores) -> Scores:
    """Midpoints of neighbouring values, evenly thinned."""
    values = np.unique(values)
    middle = (values[1:] + values[:-1]) / 2
    return middle[np.unique(np.linspace(0, len(middle) - 1, CANDIDATES).astype(int))] if len(middle) else middle


def paired_bounds(
    negative: Scores, positive: Scores, delta: float, choosing: float = 0.25
) -> tuple[tuple[Errors, Bound], tuple[Errors, Bound]]:
    """Lower bounds on epsilon at ``delta`` from statistics [n, s] of releases on D and on D', in random order: for any
    mechanism, and for one that claims Gaussian differential privacy.

    The first ``choosing`` share of both chooses the rules, and only the rest is counted.
    """
    cut_n, cut_p = int(len(negative) * choosing), int(len(positive) * choosing)

    def counted(bound: Callable[[Errors], Any]) -> Errors:
        rule = choose_rule(negative[:cut_n], positive[:cut_p], bound)
        return rule.errors(negative[cut_n:], positive[cut_p:])

    plain, gaussian = counted(lambda e: e.epsilon(CHOOSING, delta)), counted(lambda e: e.mu(CHOOSING))
    return (
        (plain, lambda level: float(plain.epsilon(level, delta))),
        (gaussian, lambda level: gaussian_epsilon(float(gaussian.mu(level)), delta)),
    )


# -- one run, many canaries --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guesses:
    """Of ``canaries`` records, each of which took part by a fair coin of its own, ``made`` were guessed and ``right``
    of these rightly. ``made`` must have been fixed beforehand."""

    canaries: int
    made: int
    right: int

    def p_value(self, epsilon: float, delta: float) -> float:
        """At least the probability of so many right guesses against an (epsilon, delta)-DP mechanism, add/remove
        (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846, the main theorem, and the code of the appendix).

        Without delta, right guesses are at most Binomial(made, e^eps / (1 + e^eps)) =: W. Delta adds
        2 canaries delta max_i P[right - i <= W < right] / i.
        """
        rate = expit(epsilon)
        tail = float(bdtrc(self.right - 1, self.made, rate))
        i = np.arange(1, self.right + 1)
        short = bdtrc(self.right - i - 1, self.made, rate) - tail
        return min(1.0, tail + 2 * self.canaries * delta * float(np.max(short / i, initial=0.0)))

    def epsilon(self, alpha: float, delta: float) -> float:
        """The largest epsilon that is refuted at ``alpha``; 0 where none is."""
        if not self.right or self.p_value(0.0, delta) > alpha:
            return 0.0
        low, high = 0.0, LARGEST_EPSILON
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (low, middle) if self.p_value(middle, delta) > alpha else (middle, high)
        return low


@dataclass(frozen=True)
class Guesser:
    """Guesses that the ``each`` records with the largest statistic took part, and that the ``each`` with the smallest
    did not; abstains from the rest."""

    statistic: int
    each: int

    def guess(self, scores: Scores, included: NDArray[np.bool_]) -> Guesses:
        """On statistics [m, s] of records and whether they took part [m]."""
        order = np.argsort(scores[:, self.statistic], kind="stable")
        right = int((~included[order[: self.each]]).sum() + included[order[len(order) - self.each :]].sum())
        return Guesses(len(included), 2 * self.each, right)


def choose_guesser(scores: Scores, included: NDArray[np.bool_], delta: float) -> Guesser:
    """The guesser with the largest bound on these statistics [m, s], which must not be counted again; of equal ones
    that which is the farthest from chance."""
    # never all: about, not exactly, half of the records took part
    sizes = {max(1, round(0.45 * len(included) * 0.75**power)) for power in range(16)}
    options = [Guesser(statistic, each) for statistic in range(scores.shape[1]) for each in sorted(sizes)]

    def merit(one: Guesser) -> tuple[float, float]:
        guesses = one.guess(scores, included)
        return guesses.epsilon(CHOOSING, delta), (2 * guesses.right - guesses.made) / math.sqrt(guesses.made)

    return max(options, key=merit)


def one_run_delta(delta: float, canaries: int) -> float:
    """The delta at which a one-run bound is asked for: where 2 canaries delta is above 2e-5, what the theorem pays for
    delta drowns every bound at the confidences used here, so that a smaller delta, with its larger claim, shows more.
    """
    return max(min(delta, 1e-5 / canaries), MIN_DELTA)
