"""A whole run on one machine: prepare, federate, compare, write everything down."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedkd import config
from fedkd.config import Data, Scenario
from fedkd.data import sources
from fedkd.distill.model import ProxyView
from fedkd.errors import ConfigError
from fedkd.privacy.accounting import Pld
from fedkd.privacy.events import PrivacyEvent, Unit
from fedkd.privacy.units import adjacency, seen_by
from fedkd.report import collect, plots, statements
from fedkd.report.budget import budget_report
from fedkd.report.numbers import number
from fedkd.report.render import Form, render
from fedkd.state import write_atomic, write_json
from server.loop import Loop
from server.run import Row, RunDirectory
from server.setting import Setting
from simulations.baselines import Baselines
from simulations.engine import Engine
from simulations.poison import Liars
from simulations.prepare import DONE, config_hash, prepare
from simulations.split import client_names
from simulations.tracking import TRACKERS, Tracker, check_installed

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: nothing here changes a byte of the result."""

    out: Path
    base: Path
    resume: bool = False
    workers: int = 1
    tell: Tell = print
    on_row: Callable[[Row], None] = lambda row: None
    stop: Callable[[], bool] = lambda: False
    track: str | None = None


class Simulation:
    """One scenario in one run directory."""

    def __init__(self, scenario: Scenario, options: Options) -> None:
        """Raises FedkdError when the directory holds another run, or one that has not been asked to continue."""
        self._scenario, self._options, self._out = scenario, options, options.out
        self._began = time.monotonic()
        check_directory(scenario, options)
        if options.track is not None:
            check_installed(options.track)
        torch.set_num_threads(1)

    def run(self) -> dict[str, Any] | None:
        """The summary; None when stopped before the end, with a checkpoint to resume from."""
        self._options.tell("preparing data, proxy set and clients")
        prepare(self._scenario, self._out, self._options.base)
        scenario, options = self._scenario, self._options
        baselines = Baselines(scenario, self._out, options.base, options.tell, options.stop)
        folders = {name: self._out / "clients" / name for name in client_names(scenario)}
        together = scenario.trained_together
        engine = Engine(folders, self._out / "test.npz", options.workers, Liars.of(scenario), together=together)
        try:
            options.tell(f"starting {len(folders)} clients")
            engine.map("open")
            with self._tracked() as tracker:
                loop = self._federate(engine, tracker)
                summary = None if loop is None else self._conclude(engine, loop, baselines)
                if tracker is not None and summary is not None:
                    tracker.end(summary)
            return summary
        finally:
            engine.close()

    @contextmanager
    def _tracked(self) -> Iterator[Tracker | None]:
        if self._options.track is None:
            yield None
            return
        metrics = self._out / "server" / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        make = TRACKERS[self._options.track]
        with contextlib.closing(make(self._out / self._options.track, [json.loads(line) for line in lines])) as tracker:
            yield tracker

    def _federate(self, engine: Engine, tracker: Tracker | None) -> Loop | None:
        def on_row(row: Row) -> None:
            if tracker is not None:
                tracker.row(row.record())
            self._options.on_row(row)

        run = RunDirectory(self._out / "server")
        view = ProxyView.load(self._out / "proxy.safetensors", self._options.base)
        test = sources.load(Data(source="npz", path="test.npz"), self._out)[0]
        setting = Setting(
            config=self._scenario,
            clients=self._scenario.clients,
            attempts=1,
            on_row=on_row,
            more=lambda round: self._more(engine),
            tell=self._options.tell,
            stop=self._options.stop,
            code=self._options.base,
        )
        with engine.grid() as grid:
            loop = Loop(grid, setting, view, run, test)
            return loop if loop.run() else None

    def _more(self, engine: Engine) -> dict[str, Any]:
        """What only the harness of a simulation can know."""
        accuracies = engine.map("accuracy").values()
        spent = max(self._epsilon(export) for export in engine.map("ledger").values())
        privacy = self._scenario.privacy
        left = None if privacy.mechanism == "none" else number(max(0.0, privacy.epsilon - spent))  # there is no budget
        return {
            "student_accuracy": sum(accuracies) / len(accuracies),
            "epsilon": number(spent),
            "epsilon_left": left,
        }

    def _epsilon(self, export: Mapping[str, Any]) -> float:
        """Of the unit that the scenario's mechanism protects."""
        events = [PrivacyEvent.from_record(event) for event in export["events"]]
        return Pld().spent(seen_by(_unit(export), events), self._scenario.privacy.delta).epsilon

    # -- after the last round ----------------------------------------------------------------------------------------

    def _conclude(self, engine: Engine, loop: Loop, baselines: Baselines) -> dict[str, Any] | None:
        engine.map("export", lambda client: str(self._out / "students" / f"{client}.safetensors"))
        loop.teacher.save(self._out / "teacher.safetensors")
        exports = engine.map("ledger")
        for client, export in exports.items():
            write_json(self._out / "ledgers" / f"{client}.json", export)
        compared = baselines.run(engine, max(self._epsilon(export) for export in exports.values()))
        if compared is None:
            return None
        summary = self._summary(engine, loop, exports, compared)
        write_report(self._out, self._scenario, exports)
        plots.draw(loop.rows, summary, self._out / "plots")
        write_json(self._out / "summary.json", summary)
        return summary

    def _summary(
        self, engine: Engine, loop: Loop, exports: Mapping[str, Any], compared: Mapping[str, Any]
    ) -> dict[str, Any]:
        students, local = engine.map("accuracy"), compared.get("local", {})
        return {
            "name": self._scenario.name,
            "seed": self._scenario.seed,
            "teacher_accuracy": loop.rows[-1]["teacher_accuracy"],
            "student_accuracy": {
                "mean": sum(students.values()) / len(students),
                "min": min(students.values()),
                "by_client": students,
            },
            "local_accuracy": local.get("accuracy"),
            "local_by_client": local.get("by_client") or None,
            "central_accuracy": compared.get("central", {}).get("accuracy"),
            "baselines": compared,
            "tune_accuracy": self._tune_accuracy(loop),
            "privacy": self._privacy(exports),
            "bytes_up": round(loop.traffic["up"] / self._scenario.clients),
            "bytes_down": round(loop.traffic["down"] / self._scenario.clients),
            "rounds": len(loop.rows),
            "seconds": round(time.monotonic() - self._began, 2),
            "run_dir": str(self._out),
            **({"poisoned": sorted(Liars.of(self._scenario).clients)} if self._scenario.poison else {}),
        }

    def _tune_accuracy(self, loop: Loop) -> float | None:
        """The teacher on the public tuning split: what settings are to be chosen by."""
        tune = sources.load(Data(source="npz", path="tune.npz"), self._out)[0]
        if not len(tune):
            return None
        first = loop.teacher.predict(tune.x).argmax(axis=1)
        return float((first == tune.y).mean())

    def _privacy(self, exports: Mapping[str, Any]) -> dict[str, Any]:
        privacy = self._scenario.privacy
        protected = privacy.mechanism != "none"
        events = [PrivacyEvent.from_record(event) for export in exports.values() for event in export["events"]]
        unit: Unit = next((_unit(export) for export in exports.values() if export["events"]), "example")
        return {
            "mechanism": privacy.mechanism,
            "unit": unit if protected else "none",
            "adjacency": adjacency(unit, events) if protected else "none",
            "trust": statements.trust(privacy.mechanism),
            "epsilon": number(max(self._epsilon(export) for export in exports.values())),
            "delta": privacy.delta,
            "noise": "simulation: reproducible, gives no guarantee",
        }


def write_report(out: Path, scenario: Scenario, exports: Mapping[str, Any]) -> None:
    """The budget report of a run directory, in all its forms."""
    report = budget_report(
        exports,
        provenance=collect.provenance([out]),
        config_hash=config_hash(scenario),
        public_weights=collect.public_weights([out]),
        compared=collect.compared([out]),
    )
    forms: dict[str, Form] = {"report.txt": "text", "report.json": "json", "report.html": "html"}
    for name, form in forms.items():
        write_atomic(out / name, render(report, form).encode())


def _unit(export: Mapping[str, Any]) -> Unit:
    """The unit that the newest contract protects."""
    contracts = export["contracts"]
    return "client" if contracts and contracts[-1]["limits"]["unit"] == "client" else "example"


def check_directory(scenario: Scenario, options: Options) -> None:
    """Raises ConfigError when it holds another run, or one that has not been asked to continue."""
    out = options.out
    written = out / "config.yaml"
    if not options.resume and out.exists() and any(out.iterdir()):
        raise ConfigError("the run directory is not empty", where=str(out), fix="add --resume, or choose another --out")
    if options.resume and (out / DONE).exists():
        before = config.load(type(scenario), written)
        if config_hash(before) != config_hash(scenario):
            raise ConfigError(
                "the run directory holds a run of another configuration",
                where=str(written),
                fix="resume without a scenario and without --set, or choose another --out",
            )
