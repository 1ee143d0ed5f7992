"""Lays out a federation on disk: the proxy set, the server's configuration, and one folder a client.

A simulated client's folder is a deployed client's folder: ``fedkd client`` starts from it just as well.
"""

from __future__ import annotations

import io
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedkd import __version__, config
from fedkd.config import Architecture, ClientConfig, Continual, Data, Policy, Scenario, ServerConfig, Training
from fedkd.continual.stream import block_name
from fedkd.data import encoding, proxy, sources
from fedkd.data.sources import Examples, as_float
from fedkd.distill import features
from fedkd.errors import ConfigError, DataError, FedkdError
from fedkd.state import write_atomic, write_json
from fedkd.tensors import canonical, digest, unpack_plain
from server.run import RunDirectory
from simulations.split import Split, client_names, cut, deal

DONE = "prepared"
LIBRARIES = ("flwr", "torch", "opacus", "dp-accounting", "numpy", "scikit-learn", "cryptography", "safetensors")


def config_hash(scenario: Scenario) -> str:
    """Hash of the resolved configuration."""
    return digest(canonical(scenario.model_dump(mode="json")))


def prepare(scenario: Scenario, out: Path, base: Path, noise: Literal["os", "simulation"] = "simulation") -> None:
    """Write everything that server and clients start from; a second call finds it done.

    ``base`` is the folder that relative paths in the scenario start from; ``noise`` goes into the clients' policies:
    only noise of the operating system gives a guarantee. Raises DataError or ConfigError.
    """
    if (out / DONE).exists():
        return
    if noise == "os" and scenario.privacy.nominal_examples is None:
        raise ConfigError(
            "a policy that gives a guarantee needs a public guess of a client's example count, not the true one",
            where="key 'privacy.nominal_examples'",
            fix="for example: --set privacy.nominal_examples=200",
        )
    split = cut(scenario, base)
    parts = deal(scenario, split.private)
    public = _pack(scenario, split, base)
    public.save(out / "proxy.safetensors")
    write_examples(out / "tune.npz", split.tune)
    write_examples(out / "test.npz", split.test)
    nominal = scenario.privacy.nominal_examples or max(1, len(split.private) // _shares(scenario))
    for index, (name, part) in enumerate(zip(client_names(scenario), parts, strict=True)):
        _write_client(scenario, out, base, index, name, split.private.take(part), public.hash, nominal, noise)
    _write_server(scenario, out, base)
    write_atomic(out / "config.yaml", config.dump(scenario).encode())
    write_json(out / "versions.json", _versions(scenario))
    write_atomic(out / "base", str(base.resolve()).encode())
    write_atomic(out / DONE, public.hash.encode())


def _shares(scenario: Scenario) -> int:
    """Into how many parts the private pool is dealt."""
    return scenario.clients * (scenario.stream.experiences if isinstance(scenario, Continual) else 1)


def _limits(scenario: Scenario) -> dict[str, Any]:
    """The policy's limits of single blocks."""
    if not isinstance(scenario, Continual):
        return {}
    privacy = scenario.privacy
    return {
        "block_epsilons": {block_name(number): limit for number, limit in enumerate(privacy.epsilons)},
        "lifetime_epsilon": privacy.lifetime_epsilon,
    }


def private_examples(out: Path, scenario: Scenario) -> Examples:
    """All clients' data together: what a central model would have."""
    parts = [
        sources.load(Data(source="npz", path="data.npz"), out / "clients" / name)[0] for name in client_names(scenario)
    ]
    x, y = (np.concatenate([getattr(part, side) for part in parts]) for side in ("x", "y"))
    return Examples(x, y, parts[0].classes)


def build_proxy(scenario: Scenario, base: Path, before: proxy.ProxySet | None = None) -> proxy.ProxySet:
    """Only the proxy set of a scenario; or a new version of the set ``before``, with its features and its encoding, on
    which students go on. Raises DataError."""
    if before is None:
        return _pack(scenario, cut(scenario, base), base)
    known = encoding.agreed(scenario.data, before.provenance.get("encoding", {}), f"data.source {scenario.data.source}")
    split = cut(scenario.model_copy(update={"data": known}), base)
    public = split.proxy
    if (public.x.shape[1:], public.classes) != (before.shape, before.classes):
        raise DataError(
            f"{public.classes} classes of examples {list(public.x.shape[1:])} are no new version of a proxy set with "
            f"{before.classes} of {list(before.shape)}"
        )
    return proxy.build(
        public.x,
        public.y if scenario.proxy.labelled else None,
        public.classes,
        before.features_spec,
        before.features_arrays,
        _provenance(scenario, split) | {"features_of": before.hash},
    )


def _pack(scenario: Scenario, split: Split, base: Path) -> proxy.ProxySet:
    public, chosen = split.proxy, scenario.features
    try:
        fitted = features.fit_features(
            chosen.kind,
            as_float(public.x),
            components=chosen.components,
            base=base,
            weights=None if chosen.weights is None else unpack_plain((base / chosen.weights).read_bytes()),
        )
    except FedkdError as error:
        raise error.at("keys features.kind and features.components") from None
    return proxy.build(
        public.x,
        public.y if scenario.proxy.labelled else None,
        public.classes,
        fitted.spec,
        features.arrays(fitted),
        _provenance(scenario, split),
    )


def _provenance(scenario: Scenario, split: Split) -> dict[str, Any]:
    sizes = {"proxy": scenario.proxy.size, "tune": scenario.proxy.tune_size}
    rule = "the first proxy.size of a seeded permutation of the training examples"
    return proxy.describe(split.data, scenario.seed, rule, sizes)


def _write_client(
    scenario: Scenario,
    out: Path,
    base: Path,
    index: int,
    name: str,
    part: Examples,
    proxy_hash: str,
    nominal: int,
    noise: Literal["os", "simulation"],
) -> None:
    folder = out / "clients" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    privacy, student = scenario.privacy, scenario.students[index % len(scenario.students)]
    policy = Policy(
        **{
            name: getattr(privacy, name)
            for name in (*config.Protection.model_fields, "epsilon", "steps", "sample_rate")
        },
        **_limits(scenario),
        nominal_examples=nominal,
        proxies=(proxy_hash,),
        max_rounds=scenario.rounds,
        noise=noise,
        seed=scenario.seed if noise == "simulation" else None,
    )
    client = ClientConfig(
        name=name,
        data=Data(source="npz", path="data.npz"),
        proxy="../../proxy.safetensors",
        student=student,
        code=_code(scenario, student, base),
        training=_training(scenario),
        seed=scenario.seed,
    )
    write_atomic(folder / "policy.yaml", config.dump(policy).encode())
    write_atomic(folder / "client.yaml", config.dump(client).encode())
    write_examples(folder / "data.npz", part)


def _training(scenario: Scenario) -> Training:
    """Of a continual scenario the soft labels are the anchor."""
    if not isinstance(scenario, Continual):
        return scenario.training
    return scenario.training.model_copy(update={"terms": {"kl": scenario.keeping.strength}})


def _code(scenario: Scenario, network: Architecture, base: Path) -> str:
    """The scenario's folder, where something of the user's own is looked for in it."""
    own = ":" in network.kind or ":" in scenario.features.kind or network.init != "random"
    return str(base.resolve()) if own else "."


def _write_server(scenario: Scenario, out: Path, base: Path) -> None:
    common = {name: getattr(scenario, name) for name in config.Federation.model_fields}
    common["aggregate"] = scenario.aggregation
    server = ServerConfig(
        **common,
        proxy="proxy.safetensors",
        clients=scenario.clients,
        out="server",
        code=_code(scenario, scenario.teacher, base),
        test=Data(source="npz", path="test.npz"),
    )
    write_atomic(out / "server.yaml", config.dump(server).encode())
    RunDirectory(out / "server", config_hash(scenario)[:16])


def write_examples(path: Path, examples: Examples) -> None:
    """As a source ``npz`` reads them."""
    buffer = io.BytesIO()
    np.savez(buffer, x=examples.x, y=examples.y, classes=np.int64(examples.classes))
    write_atomic(path, buffer.getvalue())


def _versions(scenario: Scenario) -> dict[str, Any]:
    networks = {"teacher": scenario.teacher, **{f"students[{i}]": s for i, s in enumerate(scenario.students)}}
    starts = {name: network.init_hash for name, network in networks.items() if network.init_hash}
    return {
        "config": config_hash(scenario),
        "fedkd": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        **({"public_weights": starts} if starts else {}),
    }
