"""A federation through a stream: every period is one run of the deployed server loop under contracts of its own.

A client is in one experience for a whole period, and that experience is the data block that its answers are charged to.
What the server has after a period is the anchor of the next one, frozen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedkd import config
from fedkd.config import ClientConfig, Data
from fedkd.continual import exam
from fedkd.continual.anchor import anchored, coverage
from fedkd.continual.exam import Marks
from fedkd.continual.stream import Timetable, block_name
from fedkd.distill.losses import soften
from fedkd.distill.model import Model
from fedkd.distill.teacher import Teacher
from fedkd.distill.trainer import logits
from fedkd.errors import ConfigError
from fedkd.report.numbers import number
from fedkd.report.spend import Account
from fedkd.state import write_atomic, write_json
from server.loop import Loop
from server.run import RunDirectory
from server.setting import Setting
from simulations.continual.world import World
from simulations.engine import Engine
from simulations.prepare import config_hash
from simulations.runner import Options, write_report
from simulations.split import client_names

Row = dict[str, Any]


class FederationRun:
    """Clients with their timetables, and a teacher that goes on from period to period."""

    def __init__(self, world: World, options: Options) -> None:
        """Raises ConfigError for a period in which nobody is there."""
        self._world, self._options, self._scenario = world, options, world.scenario
        names, stream = client_names(world.scenario), world.scenario.stream
        self._tables = {name: Timetable.of(stream, index) for index, name in enumerate(names)}
        self._periods = max(table.periods(stream.experiences) for table in self._tables.values())
        for period in range(1, self._periods + 1):
            if not self._there(period):
                raise ConfigError(f"no client is there in period {period}", where="keys stream.joins and stream.leaves")
        self._progress = world.out / "periods.json"
        found = json.loads(self._progress.read_text()) if self._progress.exists() else None
        self.rows: list[Row] = found["rows"] if found else []
        self._start: dict[str, Any] = found["start"] if found else {}
        folders = {name: self._folder(name) for name in names}
        self._engine = Engine(folders, world.out / "test.npz", options.workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def run(self, on_row: Callable[[Row], None]) -> bool:
        """Play the periods that are left; False when asked to stop before the end. Raises FedkdError."""
        for name in self._tables:
            self._configure(name, self._experience_at(name, len(self.rows)) or 0)
        self._engine.map("reopen")
        if not self._start:
            self._start = self._examine(None)
        for period in range(len(self.rows) + 1, self._periods + 1):
            if self._options.stop() or not self._play(period):
                return False
            self.rows.append(self._row(period))
            write_json(self._progress, {"rows": self.rows, "start": self._start})
            on_row(self.rows[-1])
        return True

    # -- one period --------------------------------------------------------------------------------------------------

    def _play(self, period: int) -> bool:
        """One federated run of those who are there, unless all of them have spent what they may."""
        there = self._there(period)
        for name, experience in there.items():
            self._configure(name, experience)
        self._engine.map("reopen", clients=there)
        quorum = self._quorum(period, there)
        if not quorum:
            self._options.tell(f"period {period}: every client has spent its limit, and nobody answers")
            return True
        setting = Setting(
            config=self._scenario.model_copy(update={"quorum": quorum}),
            clients=len(there),
            attempts=1,
            tell=self._options.tell,
            stop=self._options.stop,
            code=self._world.base,
            anchor=self._anchor(period),
        )
        run = RunDirectory(self._server(period), f"{config_hash(self._scenario)[:16]}-{period}")
        with self._engine.grid(there) as grid:
            return Loop(grid, setting, self._world.view, run, None).run()

    def _quorum(self, period: int, there: Mapping[str, int]) -> float:
        """The scenario's, as far as there are clients that may answer; 0 if there are none. Decided once: a period that
        is resumed has spent some already."""
        path = self._server(period) / "quorum.json"
        if not path.exists():
            able = sum(self._engine.map("can_answer", clients=there).values())
            write_json(path, min(self._scenario.quorum, able / len(there)))
        return float(json.loads(path.read_text()))

    def _anchor(self, period: int) -> NDArray[np.float32] | None:
        """What the teacher of the periods before said of the proxies, without mass on classes that had not come."""
        teacher = self._teacher(period - 1)
        if teacher is None or self._scenario.keeping.method != "proxy":
            return None
        said = logits(teacher.network, self._world.view.inputs(teacher.network.takes))
        rows: NDArray[np.float32] = anchored(said, self._known(period - 1), self._scenario.temperature).numpy()
        return rows

    def _known(self, period: int) -> tuple[int, ...]:
        """The classes that anybody has met by the end of a period."""
        met: set[int] = set()
        for name in self._tables:
            numbers = [self._experience_at(name, past) for past in range(1, period + 1)]
            met |= {label for n in numbers if n is not None for label in self._world.lists(name)[n]}
        return tuple(sorted(met))

    def _row(self, period: int) -> Row:
        marks = self._examine(self._teacher(period))
        there = self._there(period)
        seen = {name: self._seen(marks[name], number) for name, number in there.items()}
        last = max(there.values())
        return {
            "step": period,
            "classes": list(self._known(period)),
            "there": there,
            "seen": {
                "teacher": self._seen(marks["teacher"], last),
                "students": _mean(seen.values()),
            },
            "marks": marks,
            "epsilon": number(max(max(spent.values()) for spent in self._spent().values())),
            "coverage": self._coverage(period),
        }

    @staticmethod
    def _seen(marks: Mapping[str, Any], number: int) -> float:
        return float(Marks.from_record(marks).accuracy[: number + 1].mean())

    def _examine(self, teacher: Model | None) -> dict[str, Any]:
        """Marks by client, and of the teacher (none yet: a fresh one)."""
        marks = self._engine.map("exam", self._world.paper)
        model = (
            teacher or Teacher(self._scenario.teacher, self._world.view, self._scenario.seed, self._world.base).model
        )
        return {**marks, "teacher": self._world.examine(model, self._world.lists()).record()}

    def _coverage(self, period: int) -> dict[str, float]:
        teacher = self._teacher(period)
        if teacher is None:
            return {}
        said = logits(teacher.network, self._world.view.inputs(teacher.network.takes))
        return coverage(soften(said, self._scenario.temperature).numpy(), self._known(period))

    # -- the end -----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Every measure of the teacher and of the students, the budget, and what is kept on a device."""
        teacher, out = self._teacher(self._periods), self._world.out
        assert teacher is not None
        teacher.save(out / "teacher.safetensors")
        self._engine.map("export", lambda client: str(out / "students" / f"{client}.safetensors"))
        exports = self._engine.map("ledger")
        for client, export in exports.items():
            write_json(out / "ledgers" / f"{client}.json", export)
        write_report(out, self._scenario, exports)
        students = {name: self._measures(name, self._world.lists(name), self._ends(name)) for name in self._tables}
        whole = [found["acc"] for found in students.values() if found is not None]
        proxies = self._world.view.proxy
        return {
            "teacher": self._measures("teacher", self._world.lists(), self._common_ends()),
            "students": students,
            "student_acc": _mean(whole) if whole else None,
            "tune_acc": float(self._world.examine(teacher, self._world.lists(), "tune").accuracy.mean()),
            "privacy": self._privacy(),
            "memory": {
                "private_examples": 0,
                "bytes": len(proxies) * proxies.classes * np.dtype(self._scenario.codec).itemsize,
                "public_examples": len(proxies),
                "public_bytes": proxies.examples.nbytes,
            },
            "coverage": [row["coverage"] for row in self.rows],
            "periods": [{"there": row["there"], "seen": row["seen"], "epsilon": row["epsilon"]} for row in self.rows],
        }

    def _measures(self, who: str, lists: list[tuple[int, ...]], ends: list[int | None]) -> dict[str, Any] | None:
        """Of a matrix whose row i is taken after period ends[i]; None for one that has not met all experiences."""
        if None in ends:
            return None
        rows = [Marks.from_record(self.rows[end - 1]["marks"][who]) for end in ends if end is not None]
        return exam.report(rows, Marks.from_record(self._start[who]), lists)

    def _ends(self, name: str) -> list[int | None]:
        """The period after which a client has been in each experience for its time; None if it has left by then."""
        table, count = self._tables[name], self._scenario.stream.experiences
        ends = [table.joins - 1 + table.pace * (number + 1) for number in range(count)]
        return [end if table.experience(end, count) is not None else None for end in ends]

    def _common_ends(self) -> list[int | None]:
        """For the teacher: when the last client that meets all experiences has done with each."""
        whole = [ends for ends in map(self._ends, self._tables) if None not in ends]
        return [max(e for e in column if e is not None) for column in zip(*whole, strict=True)] if whole else [None]

    def _privacy(self) -> dict[str, Any]:
        privacy = self._scenario.privacy
        spent = self._spent()
        return {
            "mechanism": privacy.mechanism,
            "unit": "example" if privacy.mechanism != "none" else "none",
            "delta": privacy.delta,
            "epsilon": number(max(max(blocks.values()) for blocks in spent.values())),
            "by_block": {name: {b: number(e) for b, e in blocks.items()} for name, blocks in spent.items()},
            "noise": "simulation: reproducible, gives no guarantee",
        }

    def _spent(self) -> dict[str, dict[str, float]]:
        """client -> block -> epsilon of an example in it."""
        delta, spent = self._scenario.privacy.delta, {}
        for name, export in self._engine.map("ledger").items():
            account = Account.of(name, export, delta)
            spent[name] = account.by_block("example", account.events)
        return spent

    # -- where everything is -----------------------------------------------------------------------------------------

    def _there(self, period: int) -> dict[str, int]:
        found = {name: self._experience_at(name, period) for name in self._tables}
        return {name: number for name, number in found.items() if number is not None}

    def _experience_at(self, name: str, period: int) -> int | None:
        return self._tables[name].experience(period, self._scenario.stream.experiences)

    def _folder(self, name: str) -> Path:
        return self._world.out / "clients" / name

    def _server(self, period: int) -> Path:
        return self._world.out / "server" / f"period-{period}"

    def _teacher(self, period: int) -> Model | None:
        """The teacher after a period: that of the last one in which somebody answered."""
        for past in range(period, 0, -1):
            path = self._server(past) / "teacher.safetensors"
            if path.exists():
                return Model.open(path, self._world.base)
        return None

    def _configure(self, name: str, number: int) -> None:
        """Point a client to one experience, as a device does when its data moves on."""
        path, block = self._folder(name) / "client.yaml", block_name(number)
        data = Data(source="npz", path=f"{block}.npz")
        changed = config.load(ClientConfig, path).model_copy(update={"data": data, "block": block})
        write_atomic(path, config.dump(changed).encode())


def _mean(values: Any) -> float:
    found = list(values)
    return float(sum(found) / len(found))
