"""A whole client on disk in a few milliseconds: two classes, four pixels, a linear student, two steps a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.agent import Agent
from fedkd import config, wire
from fedkd.config import ClientConfig, Data, Policy, Student, Training
from fedkd.data import proxy
from fedkd.distill import features
from fedkd.wire import Agreement, Answers, Learned, Offer, Plan, Refusal

CLASSES, PIXELS, PROXIES = 2, 4, 6
REPLIES = (Answers, Learned, Refusal)


OPEN: list[Agent] = []


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def agents_are_closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def examples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n examples [n, 1, 2, 2] of two overlapping classes."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, n)
    x = random.normal(size=(n, 1, 2, 2)) + (2.0 * y - 1)[:, None, None, None]
    return x.astype(np.float32), y.astype(np.int64)


def public_examples() -> proxy.ProxySet:
    """A proxy set of six of them."""
    x, _ = examples(PROXIES, seed=100)
    fitted = features.fit_features("none", x, components=1)
    return proxy.build(x, None, CLASSES, fitted.spec, features.arrays(fitted), {"source": "made up"})


@dataclass
class Device:
    """A client's folder, and what its owner has read on the console."""

    base: Path
    proxy: proxy.ProxySet
    name: str = "alice"
    console: list[str] = field(default_factory=list)

    def write(self, x: np.ndarray, y: np.ndarray, policy: Mapping[str, Any], client: Mapping[str, Any]) -> None:
        self.base.mkdir(parents=True, exist_ok=True)
        self.proxy.save(self.base / "proxy.safetensors")
        (self.base / "state").mkdir()
        (self.base / "state" / "identity").write_bytes(bytes(range(32)))  # two devices of one name give one signature
        self.hold(x, y)
        self.decide(**policy)
        settings = {
            "name": self.name,
            "data": Data(source="npz", path="data.npz"),
            "proxy": "proxy.safetensors",
            "student": Student(kind="linear"),
            "training": Training(distil_steps=2),
            **client,
        }
        (self.base / "client.yaml").write_text(config.dump(ClientConfig.model_validate(settings)))

    def hold(self, x: np.ndarray, y: np.ndarray) -> None:
        """Private data."""
        np.savez(self.base / "data.npz", x=x, y=y, classes=np.int64(CLASSES))

    def decide(self, **policy: Any) -> None:
        """The owner's policy."""
        settings = {"epsilon": 3.0, "delta": 1e-5, "steps": 2, "nominal_examples": 20, "proxies": self.proxy.hash}
        (self.base / "policy.yaml").write_text(config.dump(Policy.model_validate({**settings, **policy})))

    def configure(self, **client: Any) -> None:
        """Change the client's configuration."""
        path = self.base / "client.yaml"
        before = config.load(ClientConfig, path).model_dump()
        path.write_text(config.dump(ClientConfig.model_validate({**before, **client})))

    def start(self) -> Agent:
        OPEN.append(Agent(self.base / "client.yaml", self.console.append))
        return OPEN[-1]

    @property
    def ledger(self) -> Path:
        return self.base / "state" / "ledger.sqlite"

    # -- a server ----------------------------------------------------------------------------------------------------

    def offer(self, **changes: Any) -> Offer:
        terms = {"run": "run-1", "server": "server", "proxy": self.proxy.hash, "examples": PROXIES, "classes": CLASSES}
        asked = {"queries": PROXIES, "rounds": 3, "codec": "float32", "aggregate": "mean", "clients": 50, "seen": ""}
        return Offer(**{**terms, **asked, **changes})

    def plan(self, round: int = 1, *, soft: float | None = None, **changes: Any) -> Plan:
        """A plan whose whole soft labels say ``soft`` for the second class; None: there is no teacher yet."""
        rows = np.zeros((0, CLASSES), np.float32)
        if soft is not None:
            rows = np.tile(np.array([1 - soft, soft], np.float32), (PROXIES, 1))
        asked: dict[str, Any] = {
            "run": "run-1",
            "proxy": self.proxy.hash,
            "round": round,
            "answer": True,
            "temperature": 1.0,
            "labels": "" if soft is None else wire.labels_digest(rows),
            "ids": np.arange(len(rows), dtype=np.uint32),
            "rows": rows,
            "asked": np.zeros(0, np.uint32),
            "seen": "",
        }
        return Plan(**{**asked, **changes})

    def agree(self, agent: Agent, **changes: Any) -> Agreement | Refusal:
        return wire.decode(agent.handle("agree", wire.encode(self.offer(**changes))), Agreement, Refusal)

    def ask(self, agent: Agent, plan: Plan) -> bytes:
        return agent.handle("answer", wire.encode(plan))


NewDevice = Callable[..., Device]


@pytest.fixture(scope="session")
def new_device(tmp_path_factory: pytest.TempPathFactory) -> NewDevice:
    """Makes a client's folder: ``new_device(data=(x, y), policy={...}, client={...}, name=...)``."""
    public = public_examples()

    def make(
        data: tuple[np.ndarray, np.ndarray] | None = None,
        policy: Mapping[str, Any] | None = None,
        client: Mapping[str, Any] | None = None,
        name: str = "alice",
    ) -> Device:
        device = Device(tmp_path_factory.mktemp("device"), public, name)
        device.write(*(data or examples(20, seed=1)), policy or {}, client or {})
        return device

    return make


@pytest.fixture(scope="session")
def private_examples() -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """(n, seed) -> x, y."""
    return examples
