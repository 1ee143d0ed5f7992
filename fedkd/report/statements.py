"""The sentences of a privacy report: what is promised, to which unit, against whom, and what is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedkd.privacy.events import PrivacyEvent

UNITS = {
    "example": "one training example of one client, added or removed (DP-SGD); a record's epsilon is its own client's, "
    "and records held by two clients add up",
    "client": "everything a client holds: no bound (infinite) as soon as one DP-SGD answer has been charged",
}

TRUST = (
    "Trusted: nobody but the client's own device and the software installed on it. Not trusted: the server, the other "
    "clients, the network, and whoever sees the teacher or the answers."
)

AGGREGATOR = (
    "Trusted: the client's own device, and the aggregator, which sees each client's votes bare and adds the noise "
    "before anything is made of them (central differential privacy). Not trusted: the other clients, and whoever sees "
    "the teacher."
)


def trust(mechanism: str) -> str:
    """Whom a mechanism's guarantee relies on."""
    return AGGREGATOR if mechanism in ("sum", "votes") else TRUST


COVERED = [
    "every answer on the proxy set that is released under a contract of this ledger, in every round and run",
    "everything made of those answers: the consensus, the teacher, other clients' students, repeated requests",
    "the student's weights and their learning state between rounds: they are outputs of the same mechanism",
]

NOT_COVERED = [
    "latency: how long an answer takes",
    "missed deadlines, failures and the participation pattern: that a client takes part, and when",
    "the teacher's test accuracy: computed from public data and released answers, hence post-processing, not charged "
    "again; an accuracy on private data, as simulations show, has no protection",
    "hyper-parameters (architecture, learning rate, clip, steps): taken to be chosen without looking at private data",
    "anything outside the wire: backups, logs, the device's own memory and disk, or other software that reads its data",
    "a predictor's answers to users on the device and anything exported from it by hand",
    "a rolled back or copied ledger, and a server that colludes with one",
    "data held again under another client's ledger: those epsilons add up",
]

FLOATING_POINT = (
    "The noise is a float64 inverse-CDF Gaussian added to float32 sums of clipped gradients before the optimiser. It "
    "is not hardened against attacks on floating-point noise (Mironov 2012, doi:10.1145/2382196.2382264)."
)

RANDOMNESS = {
    "os": "ChaCha20 under a fresh 256-bit key of the operating system for every reservation, kept in a file of its own "
    "and erased at commit",
    "simulation": "NO GUARANTEE: the noise is reproducible from the run's seed; whoever knows the seed can remove it",
}

UNKNOWN_NOISE = "NO GUARANTEE: the ledger does not say where the noise came from"


def guarantee(epsilon: float, delta: float, simulated: bool) -> str:
    """The one sentence that a report starts with."""
    if epsilon == 0 and not delta:
        return "Nothing has been charged to these ledgers: no answer has left a device, and epsilon is 0."
    if math.isinf(epsilon):
        return (
            "NO GUARANTEE: at least one client has released answers without noise; for one example of its data, "
            "epsilon is infinite, against everybody who sees the answers."
        )
    bound = (
        f"adding or removing any one training example of a client changes the probability of anything that its "
        f"answers reveal by at most a factor of e^{epsilon:.4f} and an additive {delta:g}; this holds against "
        f"everybody but the client's own device, the server included."
    )
    if simulated:
        return f"NO GUARANTEE: the noise was reproducible (simulation). With noise from the operating system, {bound}"
    return bound[0].upper() + bound[1:]


def derivation(event: PrivacyEvent, clip: float) -> str:
    """Where the sensitivity comes from."""
    if not event.protects:
        return "nothing is clipped or noised: the sensitivity has no bound"
    return (
        f"each example's gradient is clipped to L2 norm C = {clip:g}, so one example added or removed changes the sum "
        f"by at most Delta = C = {clip:g}; sigma = z Delta = {event.noise_multiplier:g} x {clip:g} = "
        f"{event.noise_multiplier * clip:g}; the divisor is the public nominal batch"
    )


def sampler(event: PrivacyEvent) -> dict[str, str]:
    """What the accountant assumes, and what the code draws."""
    if event.sample_rate == 1:
        return {"assumed": "full batch (no amplification)", "actual": "full batch: every example at every step"}
    return {
        "assumed": f"Poisson sampling at rate {event.sample_rate:g}",
        "actual": f"Poisson at rate {event.sample_rate:g}, by ChaCha20 under the reservation's key; empty samples are "
        "steps of pure noise",
    }


def adaptivity(contracts: int, events: Sequence[PrivacyEvent]) -> str:
    """What fixed-in-advance composition covers."""
    fixed = "every contract's noise, sampling and schedule were registered by hash before its first round"
    if contracts <= 1:
        return fixed
    if all(event.sample_rate == 1 for event in events):
        # Smith & Thakurta 2022 (arXiv:2210.17520); Koskela, Tobaben & Honkela 2022 (arXiv:2209.15596)
        return f"{fixed}; later contracts may depend on earlier answers, which costs full-batch Gaussians nothing"
    return (
        f"{fixed}; NOT COVERED: a contract that was concluded after answers, since composition by PLD assumes for "
        "sampled batches that all were fixed in advance. fedkd concludes none: something else wrote this ledger"
    )
