"""What a run is compared with: other ways to one model, on the same splits and at the same epsilon.

Each comparison ends in a file of the run directory, and one that has ended is not trained again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedkd.config import Baseline, BaselineName, Data, Mechanism, Policy, Scenario, Student, load
from fedkd.data import sources
from fedkd.data.sources import Examples
from fedkd.distill.losses import cross_entropy
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import Labelled, Optimiser, accuracy, fit, learn_round, optimiser_of
from fedkd.errors import ConfigError, FedkdError, PrivacyError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.architecture import check_private
from fedkd.privacy.contract import Contract, Refused, draw_up
from fedkd.privacy.limits import Past
from fedkd.privacy.noise import NoiseSource, simulation_key
from fedkd.report.comparisons import LABELS
from fedkd.report.numbers import number
from fedkd.rng import derive
from fedkd.state import write_json
from fedkd.tensors import pack
from fedkd.wire import Offer
from simulations.engine import Engine
from simulations.prepare import private_examples
from simulations.silos import Job, Update, averaged, initial_seed
from simulations.split import client_names

EPOCHS = 10
BATCH = 256
FOLDER = "baselines"
PRIVATE: tuple[BaselineName, ...] = ("central_dp_sgd", "fedavg_dp_sgd")

Result = dict[str, Any]


class Baselines:
    """The comparisons that a scenario names, in its run directory."""

    def __init__(
        self, scenario: Scenario, out: Path, base: Path, tell: Callable[[str], None], stop: Callable[[], bool]
    ) -> None:
        """Raises FedkdError at once for what could only fail after the last round."""
        self._scenario, self._out, self._base, self._tell, self._stop = scenario, out, base, tell, stop
        self._view = ProxyView.load(out / "proxy.safetensors", base)
        self._plans = {
            name: Planned(name, settings, scenario, out, self._view)
            for name, settings in scenario.baselines.items()
            if name not in ("local", "central")
        }
        for name in PRIVATE:
            if name in self._plans:
                check_private(self._fresh(self._plans[name]).network)

    def run(self, engine: Engine, epsilon: float) -> dict[str, Result] | None:
        """The results by name; None when asked to stop before the end. ``epsilon`` is what the run itself has spent."""
        for name in self._scenario.baselines:
            file = self._out / FOLDER / f"{name}.json"
            if file.exists():
                continue
            self._tell(f"to compare with: {LABELS[name]}")
            began = time.monotonic()
            try:
                found = None if self._stop() else self._one(name, engine, epsilon)
            except FedkdError as error:
                raise error.at(f"baseline {name}") from None
            if found is None:
                return None
            write_json(file, {**found, "seconds": round(time.monotonic() - began, 2)})
        return {
            name: json.loads((self._out / FOLDER / f"{name}.json").read_text()) for name in self._scenario.baselines
        }

    def _one(self, name: BaselineName, engine: Engine, epsilon: float) -> Result | None:
        if name == "local":
            return self._local(engine, epsilon)
        if name == "central":
            return self._central()
        return self._central_private() if name == "central_dp_sgd" else self._federated(self._plans[name], engine)

    # -- alone -------------------------------------------------------------------------------------------------------

    def _local(self, engine: Engine, epsilon: float) -> Result:
        """Students under the run's own contract; a mechanism that noises answers leaves them unprotected."""
        found = engine.map("local", lambda client: self._scenario.seed)
        known = {client: value for client, value in found.items() if value is not None}
        mean = sum(known.values()) / len(known) if known else None
        privacy = self._scenario.privacy
        private = privacy.mechanism == "dp_sgd"
        return {
            "accuracy": mean,
            "worst": min(known.values(), default=None),
            "by_client": known,
            "tune_accuracy": None,
            "epsilon": number(epsilon) if private else "inf",
            "delta": privacy.delta if private else None,
            "unit": "example" if private else "none",
            "bytes_up": 0,
            "bytes_down": 0,
            "rounds": self._scenario.rounds,
        }

    # -- all data in one place ---------------------------------------------------------------------------------------

    def _central(self) -> Result:
        """The teacher's architecture, without privacy."""
        seed = derive(self._scenario.seed, "central")
        model = Model.fresh(self._scenario.teacher, self._view, seed, self._base)
        data = self._union(model)
        order = torch.Generator().manual_seed(seed)

        def loss(network: nn.Module) -> Tensor:
            some = torch.randint(len(data.y), (BATCH,), generator=order)
            return cross_entropy(network(data.x[some]), data.y[some]).mean()

        steps = max(300, EPOCHS * len(data.y) // BATCH)
        fit(model.network, loss, steps=steps, learning_rate=0.005, weight_decay=1e-4, seed=seed)
        return {**self._measured(model), "epsilon": "inf", "delta": None, "unit": "none", **_NOTHING_SENT, "rounds": 1}

    def _central_private(self) -> Result:
        """DP-SGD over the union: the steps of all rounds in one, on the same budget for an example."""
        plan = self._plans["central_dp_sgd"]
        model = self._fresh(plan)
        noise = NoiseSource(simulation_key(self._scenario.seed, "central", plan.name, 1))
        learn_round(model.network, self._union(model), plan.contract, plan.optimiser, noise, None, {})
        return {**self._measured(model), **plan.spent, **_NOTHING_SENT, "rounds": 1}

    def _union(self, model: Model) -> Labelled:
        private = private_examples(self._out, self._scenario)
        return Labelled(model.inputs(private.x), torch.from_numpy(private.y))

    # -- weights that travel -----------------------------------------------------------------------------------------

    def _federated(self, plan: Planned, engine: Engine) -> Result | None:
        """Every round each silo trains from the mean of all weights. None when asked to stop."""
        model = self._fresh(plan)
        size, after = len(pack(model.arrays(), {})), []
        for round in range(1, plan.rounds + 1):
            if self._stop():
                return None
            job = plan.job(round, model)
            model.load(averaged(_all(engine, "train", job), by_size=plan.name not in PRIVATE))
            after.append(self._score(model, "test"))
        engine.map("forget")
        sent = {"bytes_up": size * plan.rounds, "bytes_down": size * (plan.rounds + 1)}
        return {**self._measured(model), **plan.spent, **sent, "rounds": plan.rounds, "accuracy_by_round": after}

    def _fresh(self, plan: Planned) -> Model:
        return Model.fresh(plan.student, self._view, initial_seed(self._scenario.seed, plan.name), self._base)

    # -- what has come of it -----------------------------------------------------------------------------------------

    def _measured(self, model: Model) -> Result:
        """Every client has this one model, so that the worst one is as good as the mean."""
        test, tune = (self._score(model, part) for part in ("test", "tune"))
        return {"accuracy": test, "worst": test, "tune_accuracy": tune}

    def _score(self, model: Model, part: str) -> float | None:
        examples: Examples = sources.load(Data(source="npz", path=f"{part}.npz"), self._out)[0]
        if not len(examples):
            return None
        return accuracy(model.network, Labelled(model.inputs(examples.x), torch.from_numpy(examples.y)))


def _all(engine: Engine, method: str, job: Job) -> Mapping[str, Update]:
    return engine.map(method, lambda client: job)


_NOTHING_SENT = {"bytes_up": None, "bytes_down": None}  # the data would have to be in one place already


class Planned:
    """A comparison by gradient steps under a contract: whose noise, if it has any, lasts for the whole run."""

    def __init__(self, name: str, settings: Baseline, scenario: Scenario, out: Path, view: ProxyView) -> None:
        """Raises PrivacyError for a schedule that the epsilon cannot pay for."""
        self.name, self._seed = name, scenario.seed
        self.student = _student(settings, scenario)
        self.optimiser: Optimiser = optimiser_of(self.student, scenario.training)
        self.rounds = 1 if name == "central_dp_sgd" else settings.rounds or scenario.rounds
        self._mu = settings.mu if name == "fedprox" else 0.0
        self.contract = _contract(self, settings, scenario, out, view)

    def job(self, round: int, model: Model) -> Job:
        """What every silo is asked for."""
        return Job(self.name, self._seed, round, self.student, self.contract, model.arrays(), self._mu)

    @property
    def spent(self) -> Result:
        """By the accounting of a run of fedkd: the whole schedule, for one example of one silo."""
        events, delta = self.contract.schedule(self.rounds), self.contract.limits.delta
        protected = self.name in PRIVATE
        spent = Pld().spent(events, delta).epsilon
        return {
            "epsilon": number(spent),
            "delta": delta if protected else None,
            "unit": "example" if protected else "none",
            "noise_multiplier": self.contract.events[0].noise_multiplier,
        }


def _student(settings: Baseline, scenario: Scenario) -> Student:
    chosen = settings.student or scenario.students[0]
    own = {} if settings.learning_rate is None else {"learning_rate": settings.learning_rate}
    return chosen.model_copy(update=own)


def _contract(plan: Planned, settings: Baseline, scenario: Scenario, out: Path, view: ProxyView) -> Contract:
    """Drawn up as a client of the run would, from its own policy with the mechanism that is compared."""
    policy = load(Policy, out / "clients" / client_names(scenario)[0] / "policy.yaml")
    mechanism: Mechanism = "dp_sgd" if plan.name in PRIVATE else "none"
    central = plan.name == "central_dp_sgd"
    steps = settings.steps or policy.steps
    changed = {
        "mechanism": mechanism,
        "also": (),
        "shards": 1,
        "steps": steps * (settings.rounds or scenario.rounds) if central else steps,
        "sample_rate": settings.sample_rate or policy.sample_rate,
        "nominal_examples": policy.nominal_examples * (scenario.clients if central else 1),
        "max_rounds": plan.rounds,
    }
    n, classes = len(view.proxy), view.proxy.classes
    offer = Offer(
        plan.name, "simulation", view.proxy.hash, n, classes, n, plan.rounds, "float32", "mean", scenario.clients, ""
    )
    try:
        return draw_up(Policy.model_validate({**policy.model_dump(), **changed}), offer, Past())
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"], where=f"key 'baselines.{plan.name}'") from None
    except Refused as refused:
        raise PrivacyError(
            f"no noise pays for this schedule: {refused.code.value}",
            where=f"baseline {plan.name}",
            fix="take fewer rounds or steps",
        ) from None
