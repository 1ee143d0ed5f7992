"""The sentences of a privacy report: what is promised, to which unit, against whom, and what is not."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from fedkd.privacy.events import Adjacency, PrivacyEvent, Unit

UNITS: dict[Unit, str] = {
    "example": "one training example of one client; its epsilon is its own client's, and records held by two clients "
    "add up",
    "client": "everything that one client holds; no bound (infinite) as soon as one DP-SGD answer has been charged",
}

DEVICE = (
    "Trusted: nobody but the client's own device and the software installed on it. Not trusted: the server, the other "
    "clients, the network, and whoever sees the teacher or the answers."
)

AGGREGATOR = (
    "Trusted: the client's own device, and the aggregator, which sees each client's votes bare and adds the noise "
    "before anything is made of them (central differential privacy). Not trusted: the other clients, and whoever sees "
    "the teacher."
)

CENTRAL = ("sum", "votes")
"""Mechanisms whose noise a trusted aggregator adds."""

COVERED = [
    "every answer on the proxy set that is released under a contract of this ledger, in every round and run",
    "everything made of those answers: the consensus, the teacher, other clients' students, repeated requests",
]

COVERED_TRAINING = (
    "the student's weights and their learning state between rounds: they are outputs of the same mechanism"
)

NOT_COVERED = [
    "latency: how long an answer takes",
    "missed deadlines, failures and the participation pattern: that a client takes part, and when",
    "the teacher's test accuracy: computed from public data and released answers, hence post-processing, not charged "
    "again; an accuracy on private data, as simulations show, has no protection",
    "hyper-parameters (architecture, learning rate, clip, steps): taken to be chosen without looking at private data",
    "weights that networks start from and backbones of public features: taken to be public, whatever they learned from",
    "anything outside the wire: backups, logs, the device's own memory and disk, or other software that reads its data",
    "a predictor's answers to users on the device and anything exported from it by hand",
    "a rolled back or copied ledger, and a server that colludes with one",
    "data held again under another client's ledger: those epsilons add up",
]

NOT_COVERED_STUDENT = (
    "the student itself, under a mechanism that puts its noise on answers: its weights stay on the device and have none"
)

NOT_COVERED_CENTRAL = (
    "what the aggregator does with bare votes: that it adds the noise it is asked for, and shows the votes to nobody"
)

NOT_COVERED_COMPARED = (
    "what this simulation has also trained on the same data, to compare with, which is in no ledger, and in no "
    "deployment"
)

ARITHMETIC = {
    "dp_sgd": "The noise is a float64 inverse-CDF Gaussian added to float32 sums of clipped gradients before the "
    "optimiser. It is not hardened against attacks on floating-point noise (Mironov 2012, "
    "doi:10.1145/2382196.2382264).",
    "none": "There is no noise.",
}

DISCRETE = (
    "The noise is a discrete Gaussian on integers, sampled exactly without floating point (Canonne, Kamath & Steinke "
    "2020, arXiv:2004.00010), so that attacks on floating-point noise do not apply."
)

RANDOMNESS = {
    "os": "ChaCha20 under a fresh 256-bit key of the operating system for every reservation, kept in a file of its own "
    "and erased at commit",
    "simulation": "NO GUARANTEE: the noise is reproducible from the run's seed; whoever knows the seed can remove it",
}

CENTRAL_NOISE = "drawn by the trusted aggregator, for each round anew; this ledger cannot tell how"

UNKNOWN_NOISE = "NO GUARANTEE: the ledger does not say where the noise came from"


def randomness(noise: str, mechanisms: Collection[str]) -> str:
    """Where the noise came from, by the policy's word for it and the mechanisms that were charged."""
    own = RANDOMNESS.get(noise, UNKNOWN_NOISE)
    central = {*mechanisms} & {*CENTRAL}
    if noise != "os" or not central:
        return own
    added = f"of {' and '.join(sorted(central))}: {CENTRAL_NOISE}"
    return added if central == {*mechanisms} else f"{added}; of the others: {own}"


def trust(mechanism: str) -> str:
    """Whom a mechanism's guarantee relies on."""
    return AGGREGATOR if mechanism in CENTRAL else DEVICE


def arithmetic(mechanism: str) -> str:
    """How a mechanism's noise is made in a computer's arithmetic."""
    return ARITHMETIC.get(mechanism, DISCRETE)


def covered(mechanisms: Collection[str]) -> list[str]:
    """Outputs that the numbers speak of."""
    return [*COVERED, *([COVERED_TRAINING] if not {*mechanisms} - {"dp_sgd"} else [])]


def not_covered(mechanisms: Collection[str], compared: Sequence[str] = ()) -> list[str]:
    """Outputs that the numbers say nothing about; ``compared`` is what a simulation was compared with, in words."""
    others = [f"{NOT_COVERED_COMPARED}: {', '.join(compared)}"] if compared else []
    bare = [NOT_COVERED_STUDENT] if {*mechanisms} & {"gaussian", *CENTRAL} else []
    return [*([NOT_COVERED_CENTRAL] if {*mechanisms} & {*CENTRAL} else []), *bare, *NOT_COVERED, *others]


NOTHING: dict[Unit, str] = {
    "example": "Nothing has been charged to these ledgers: no answer has left a device, and epsilon is 0.",
    "client": "The same holds for all that one client holds together.",
}

UNBOUNDED: dict[Unit, str] = {
    "example": "NO GUARANTEE: at least one client has released answers without noise; for one example of its data, "
    "epsilon is infinite, against everybody who sees the answers.",
    "client": "For everything that one client holds together there is no bound: epsilon is infinite.",
}

SIMULATED = "NO GUARANTEE: the noise was reproducible (simulation). With noise from the operating system, "


def guarantee(
    unit: Unit, adjacencies: Collection[Adjacency], epsilon: float, delta: float, central: bool, simulated: bool
) -> str:
    """The sentence that says what is promised to one unit, or that nothing is."""
    if epsilon == 0 and not delta:
        return NOTHING[unit]
    if math.isinf(epsilon):
        return UNBOUNDED[unit]
    against = "the client's own device and the aggregator" if central else "the client's own device"
    others = "the other clients and the public" if central else "the server"
    bound = (
        f"{_change(unit, adjacencies)} changes the probability of anything that its answers reveal by at most a factor "
        f"of e^{epsilon:.4f} and an additive {delta:g}; this holds against everybody but {against}, {others} included."
    )
    return f"{SIMULATED}{bound}" if simulated else f"{bound[0].upper()}{bound[1:]}"


def refuted(audits: Sequence[str]) -> str:
    """What is promised where audits have shown more than was claimed."""
    return f"NO GUARANTEE: an audit has shown more than was claimed ({'; '.join(audits)})."


def _change(unit: Unit, adjacencies: Collection[Adjacency]) -> str:
    verbs = {"add_remove": "adding or removing", "replace": "replacing"}
    verb = " or ".join(verbs[one] for one in sorted(adjacencies))
    return f"{verb} {'any one training example of a client' if unit == 'example' else 'all that one client holds'}"


def sampler(event: PrivacyEvent) -> dict[str, str]:
    """What the accountant assumes, and what the code draws."""
    if event.unit == "client" or event.mechanism in CENTRAL:
        return {
            "assumed": "no sampling (no amplification)",
            "actual": "every query that is asked is answered and charged",
        }
    if event.sample_rate == 1:
        return {"assumed": "full batch (no amplification)", "actual": "full batch: every example at every step"}
    return {
        "assumed": f"Poisson sampling at rate {event.sample_rate:g}",
        "actual": f"Poisson at rate {event.sample_rate:g}, by ChaCha20 under the reservation's key; empty samples are "
        "steps of pure noise",
    }


def adaptivity(contracts: int, events: Sequence[PrivacyEvent]) -> str:
    """What fixed-in-advance composition covers, and what limits the ledger where it does not."""
    fixed = "every contract's noise, sampling and schedule were registered by hash before its first round"
    if contracts <= 1:
        return fixed
    if all(event.sample_rate == 1 for event in events):
        # Smith & Thakurta 2022 (arXiv:2210.17520); Koskela, Tobaben & Honkela 2022 (arXiv:2209.15596)
        return (
            f"{fixed}; later contracts may depend on earlier answers, which costs full-batch Gaussians nothing where "
            "the limit was fixed in advance: the proven bound is the policy's limit, and the epsilon shown is what has "
            "been counted towards it so far"
        )
    return (
        f"{fixed}; later contracts may depend on earlier answers, and PLD bounds sampled batches only where all was "
        "fixed in advance: the number that limits and is reported is that of a Renyi filter (Feldman & Zrnic 2021, "
        "arXiv:2008.11193); the proven bound is its limit, and the epsilon shown is what has been counted so far"
    )
