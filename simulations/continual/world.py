"""What a continual scenario is made of, laid out in its run directory: experiences, tests and public examples."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from fedkd.config import Continual
from fedkd.continual import stream
from fedkd.continual.exam import Marks, examine
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import Labelled
from fedkd.state import write_atomic
from simulations.host import Paper, load_npz
from simulations.prepare import prepare, write_examples
from simulations.split import client_names

LAID_OUT = "laid-out"
Lists = list[tuple[int, ...]]


def lay_out(scenario: Continual, out: Path, base: Path) -> None:
    """Write the run directory; a second call finds it done. Raises DataError or ConfigError."""
    prepare(scenario, out, base)
    if (out / LAID_OUT).exists():
        return
    for name in client_names(scenario):
        _write_experiences(scenario, out / "clients" / name, name)
    for part in ("test", "tune"):
        for number, look in enumerate(stream.looks(scenario.stream, load_npz(out / f"{part}.npz"), scenario.seed)):
            write_examples(look_path(out, part, number), look)
    write_atomic(out / LAID_OUT, b"")


def _write_experiences(scenario: Continual, folder: Path, client: str) -> None:
    own = load_npz(folder / "data.npz")
    nobody = own.take(torch.zeros(0, dtype=torch.int64).numpy())
    for experience in stream.make(scenario.stream, own, nobody, scenario.seed, client):
        write_examples(folder / f"{experience.block}.npz", experience.train)


def look_path(out: Path, part: str, number: int) -> Path:
    """The test or tuning examples as experience ``number`` shows them."""
    return out / "looks" / f"{part}-{number}.npz"


class World:
    """A laid-out scenario as networks see it; inputs are computed once."""

    def __init__(self, scenario: Continual, out: Path, base: Path) -> None:
        self.scenario, self.out, self.base = scenario, out, base
        self._looks: dict[tuple[str, str], list[Labelled]] = {}
        self._experiences: dict[tuple[str, int], Labelled] = {}

    @cached_property
    def view(self) -> ProxyView:
        """The proxy set."""
        return ProxyView.load(self.out / "proxy.safetensors", self.base)

    def lists(self, client: str = "") -> Lists:
        """The public classes of a client's experiences; without a client those of the common order."""
        return stream.class_lists(self.scenario.stream, self.view.proxy.classes, self.scenario.seed, client)

    def paper(self, client: str) -> Paper:
        """The exam of a client's student."""
        looks = [look_path(self.out, "test", number).resolve() for number in range(self._count)]
        return Paper(looks, self.lists(client), self.told)

    @property
    def told(self) -> bool:
        """Whether a test names the classes to choose from."""
        return self.scenario.stream.kind == "task"

    @property
    def _count(self) -> int:
        return self.scenario.stream.experiences if self.scenario.stream.kind == "domain" else 1

    def before(self, number: int) -> tuple[int, ...]:
        """The classes of the common order that have come before an experience."""
        return tuple(sorted({label for own in self.lists()[:number] for label in own}))

    def experience(self, model: Model, number: int) -> Labelled:
        """What the one learner meets, as its network sees it."""
        key = (model.network.takes, number)
        if key not in self._experiences:
            (client,) = client_names(self.scenario)
            data = load_npz(self.out / "clients" / client / f"{stream.block_name(number)}.npz")
            self._experiences[key] = Labelled(model.inputs(data.x), torch.from_numpy(data.y))
        return self._experiences[key]

    def examine(self, model: Model, lists: Lists, part: str = "test") -> Marks:
        """What a model knows of experiences with these classes."""
        return examine(model.network, self._inputs(model, part), lists, told=self.told)

    def _inputs(self, model: Model, part: str) -> list[Labelled]:
        key = (model.network.takes, part)
        if key not in self._looks:
            looks = (load_npz(look_path(self.out, part, number)) for number in range(self._count))
            self._looks[key] = [Labelled(model.inputs(look.x), torch.from_numpy(look.y)) for look in looks]
        return self._looks[key]
