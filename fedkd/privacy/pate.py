"""What noisy votes cost, whatever the votes are (Papernot et al. 2018, arXiv:1802.08908).

The paper's smaller, data-dependent bounds are functions of the votes: to publish one is a release of its own, so there
are none here. Both steps are Gaussian mechanisms whose exact composition is known, which wins some of it back.
"""

from __future__ import annotations

from fedkd.privacy.discrete import charged_as
from fedkd.privacy.events import Adjacency, PrivacyEvent


def answer_sensitivity(adjacency: Adjacency) -> int:
    """Squared L2 sensitivity of one query's counts: a vote that moves changes two of them by one (proposition 8), a
    client that comes or goes changes one."""
    return 2 if adjacency == "replace" else 1


def vote_events(
    queries: int,
    answers: int,
    *,
    variance: int,
    test_variance: int | None = None,
    adjacency: Adjacency = "replace",
    blocks: tuple[str, ...] = ("all",),
) -> tuple[PrivacyEvent, ...]:
    """Events of ``queries`` that were put to the vote, of which ``answers`` got a label, under discrete noise.

    Every query asked pays for the threshold test, whose largest count one client moves by at most 1 under both
    adjacencies: alpha / (2 test_variance) of Renyi DP. Every query answered pays for the noisy counts: alpha / variance
    under replace. GNMax has no test, and answers all.
    How many will be answered is not known in advance: a contract counts them all. Raises PrivacyError for too little
    noise, ValueError for numbers that contradict each other.
    """
    if not 0 <= answers <= queries or (test_variance is None and answers != queries):
        raise ValueError("answers are at most as many as queries, and without a threshold test as many")
    steps = [(answers, variance, answer_sensitivity(adjacency))]
    if test_variance is not None:
        steps.insert(0, (queries, test_variance, 1))
    return tuple(
        PrivacyEvent("votes", charged_as(noise, squared), 1.0, count, "client", adjacency, blocks)
        for count, noise, squared in steps
        if count
    )
