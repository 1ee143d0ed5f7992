"""Which audit finds which mistake: plants one at a time in the real code, and prints a Markdown table.

python benchmarks/audit_power.py [--epsilon 1 3 8] [--bugs "clip forgotten" ...]

A cell names the audits whose lower bound is above the claim at the confidence of the whole suite; about ten minutes on
one core. Audits of code that a mistake does not touch are not run again for it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from opacus.optimizers import DPOptimizer

from client import agent
from fedkd import config
from fedkd.config import Scenario
from fedkd.privacy import contract, dp_sgd
from fedkd.privacy.audit import Evidence
from fedkd.privacy.costs import Cost, cost_of
from fedkd.privacy.dp_sgd import PrivateSteps
from fedkd.privacy.noise import simulation_key
from simulations.audits import paired
from simulations.audits.answers import Attack
from simulations.audits.canaries import canary_evidence
from simulations.audits.noise import source_evidence, update_evidence
from simulations.audits.paired import GAMES, paired_evidence
from simulations.audits.setting import Setting, Sizes

SIZES = Sizes(trials=400, canaries=1000, draws=10_000, runs=5, targets=40)
IN_THE_SUITE = 35  # lower bounds of a whole ``fedkd audit``
CONFIDENCE = 0.999

Plant = Callable[[ExitStack], None]
SHORT = {
    "noise source": "source",
    "noise in the weights": "noise",
    "paired releases": "paired",
    "canaries": "canaries",
    "membership": "answers",
}


def clip_forgotten(stack: ExitStack) -> None:
    """Gradients are summed as long as they are; the noise is that of the clip."""

    def unclipped(self: Any) -> None:
        kept, self._clip = self._clip, 1e9
        try:
            DPOptimizer.clip_and_accumulate(self)
        finally:
            self._clip = kept

    shortening = dp_sgd._GhostModule.get_clipping_coef

    def ones(self: Any) -> torch.Tensor:
        return torch.ones_like(shortening(self))

    stack.enter_context(patch.object(dp_sgd._KeyedHooks, "clip_and_accumulate", unclipped))
    stack.enter_context(patch.object(dp_sgd._GhostModule, "get_clipping_coef", ones))


def less_noise(times: float) -> Plant:
    """DP-SGD adds noise that is so many times too small."""

    def plant(stack: ExitStack) -> None:
        add_noise = dp_sgd._Keyed.add_noise

        def weak(self: Any) -> None:
            kept = self.noise_multiplier
            self.noise_multiplier = kept / times
            try:
                add_noise(self)
            finally:
                self.noise_multiplier = kept

        stack.enter_context(patch.object(dp_sgd._Keyed, "add_noise", weak))

    return plant


def less_sensitivity(times: Callable[[int], int]) -> Plant:
    """Noise on answers, sums and votes is sized for a squared sensitivity that is so many times too small."""

    def plant(stack: ExitStack) -> None:
        def wrong(mechanism: Any, policy: Any, queries: int, aggregate: str, block: str) -> Cost:
            cost = cost_of(mechanism, policy, queries, aggregate, block)
            if mechanism in ("dp_sgd", "none"):
                return cost
            parts = (replace(p, squared=p.squared and max(1, p.squared // times(queries))) for p in cost.parts)
            return replace(cost, parts=tuple(parts))

        stack.enter_context(patch.object(contract, "cost_of", wrong))

    return plant


def key_without(what: str) -> Plant:
    """Reservations of all clients, or of all rounds, have one noise key."""

    def plant(stack: ExitStack) -> None:
        def shared(self: Any, plan: Any) -> bytes:
            name, number = ("", plan.round) if what == "client" else (self.name, 0)
            return simulation_key(0, name, plan.run, number)

        stack.enter_context(patch.object(agent.Agent, "_new_key", shared))

    return plant


def empty_skipped(stack: ExitStack) -> None:
    """A sample without examples takes no step."""
    step = PrivateSteps.step

    def wrong(self: Any, x: Any, y: Any, loss: Any, public: Any = None) -> None:
        if len(x):
            step(self, x, y, loss, public)

    stack.enter_context(patch.object(PrivateSteps, "step", wrong))


def joint_backward(stack: ExitStack) -> None:
    """One backward pass through the private loss and the public one."""
    private = PrivateSteps._private_gradients

    def remember(self: Any, public: Any) -> list[None]:
        self._shared = public
        return [None] * len(self._params)

    def joint(self: Any, x: Any, y: Any, loss: Any) -> None:
        shared = self._shared() / len(x) if self._shared and len(x) else 0.0
        private(self, x, y, lambda logits, targets: loss(logits, targets) + shared)

    # it would fail loudly: with ghost clipping Opacus refuses a layer that is used twice, with hooks our check of norms
    # finds more gradients than examples
    stack.enter_context(patch.object(PrivateSteps, "_norms", lambda self, n: torch.zeros(n)))
    stack.enter_context(patch.object(dp_sgd, "clipper_for", lambda network: "hooks"))
    stack.enter_context(patch.object(PrivateSteps, "_public_gradients", remember))
    stack.enter_context(patch.object(PrivateSteps, "_private_gradients", joint))


def private_divisor(stack: ExitStack) -> None:
    """The noised sum is divided by the number of examples."""
    step = PrivateSteps.step

    def wrong(self: Any, x: Any, y: Any, loss: Any, public: Any = None) -> None:
        self._nominal_batch = max(len(x), 1)
        step(self, x, y, loss, public)

    stack.enter_context(patch.object(PrivateSteps, "step", wrong))


TRAINING, ANSWERS = "dp_sgd", "answers"


@dataclass(frozen=True)
class Bug:
    """A mistake, and the part of the code that it touches."""

    plant: Plant
    touches: tuple[str, ...] = (TRAINING,)


BUGS: dict[str, Bug] = {
    "none: the code as it is": Bug(lambda stack: None, (TRAINING, ANSWERS)),
    "clip forgotten": Bug(clip_forgotten),
    "noise √2 too small in DP-SGD": Bug(less_noise(math.sqrt(2))),
    "√2 forgotten in gaussian, sum and votes": Bug(less_sensitivity(lambda queries: 2), (ANSWERS,)),
    "√q forgotten in gaussian, sum and votes": Bug(less_sensitivity(lambda queries: queries), (ANSWERS,)),
    "no noise in DP-SGD": Bug(less_noise(1e9)),
    "noise shared by clients": Bug(key_without("client")),
    "noise shared by rounds": Bug(key_without("round")),
    "empty sample skipped": Bug(empty_skipped),
    "joint backward pass of private and public loss": Bug(joint_backward),
    "private count as divisor": Bug(private_divisor),
}


def evidence(bug: Bug, setting: Setting) -> Iterator[Evidence]:
    """Of all audits of the code that is touched."""
    with ExitStack() as stack:
        bug.plant(stack)
        if TRAINING in bug.touches and ANSWERS in bug.touches:
            yield from source_evidence(setting)
        with games(lambda name: ("dp_sgd" in name) == (TRAINING in bug.touches) or len(bug.touches) == 2):
            yield from paired_evidence(setting)
        if TRAINING in bug.touches:
            yield from update_evidence(setting)
            yield from canary_evidence(setting)
            with TemporaryDirectory() as folder:
                yield Attack(setting, Path(folder)).evidence(setting.scenario.privacy)


@contextmanager
def games(chosen: Callable[[str], bool]) -> Iterator[None]:
    """Only some of the paired games."""
    with patch.object(paired, "GAMES", {name: game for name, game in GAMES.items() if chosen(name)}):
        yield


def found(bug: Bug, epsilon: float) -> str:
    """The audits that see it."""
    scenario = config.load(Scenario, None, [f"privacy.epsilon={epsilon}"])
    setting = Setting(scenario, Path.cwd(), SIZES, lambda text: None)
    alpha = (1 - CONFIDENCE) / IN_THE_SUITE
    above = [one.audit for one in evidence(bug, setting) if one.bound(alpha) > one.claim]
    print(f"  epsilon {epsilon:g}: {above}", flush=True)
    names = dict.fromkeys(short for name in above for start, short in SHORT.items() if name.startswith(start))
    return ", ".join(names) or "–"


def main() -> None:
    """Plant every mistake at every epsilon, and print what was found."""
    options = _arguments()
    torch.set_num_threads(1)
    rows, began = [], time.process_time()
    for name in options.bugs:
        print(name, flush=True)
        rows.append([name, *(found(BUGS[name], epsilon) for epsilon in options.epsilon)])
    head = ["planted mistake", *(f"ε = {epsilon:g}" for epsilon in options.epsilon)]
    print("\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)))
    print(f"\n{time.process_time() - began:.0f} s of processor time")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 8.0])
    parser.add_argument("--bugs", nargs="+", choices=list(BUGS), default=list(BUGS), metavar="NAME")
    return parser.parse_args()


if __name__ == "__main__":
    main()
