"""Noisy arg-max of votes, by a trusted aggregator (Papernot et al. 2018, arXiv:1802.08908).

What it costs is in ``fedkd.privacy.costs``, whatever the votes are: the paper's smaller, data-dependent bounds are
functions of the votes, so that to publish one is a release of its own. Ties, which discrete noise has, go to the first
class: that depends on the noisy counts alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedkd.privacy.noise import NoiseSource

Integers = NDArray[np.int64]
UNANSWERED = -1


def gnmax(tally: Integers, noise: NoiseSource, variance: int) -> Integers:
    """GNMax (section 4.1): for each query of a tally [q, k] of votes, the class with most after N_Z(0, variance) was
    added to every count. Labels [q]."""
    labels: Integers = (tally + noise.discrete_gaussian(tally.shape, variance)).argmax(axis=1)
    return labels


def confident_gnmax(
    tally: Integers, noise: NoiseSource, threshold: int, test_variance: int, variance: int
) -> tuple[NDArray[np.bool_], Integers]:
    """Confident-GNMax (algorithm 1): GNMax for queries whose largest count plus N_Z(0, test_variance) is at least the
    threshold. Which were answered [q], and the labels [q], UNANSWERED where they were not.

    Both may be released. The two noises are independent, and drawn for all queries alike.
    """
    largest = tally.max(axis=1)
    answered = largest + noise.discrete_gaussian(largest.shape, test_variance) >= threshold
    return answered, np.where(answered, gnmax(tally, noise, variance), UNANSWERED)
