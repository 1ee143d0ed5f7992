"""Which relays a SuperLink knows: the server's folder of public keys decides, and its registry follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from fedkd.errors import ConfigError
from fedkd.state import write_json
from fedkd.trust import node_keys
from server.commands import SuperLink

REGISTRY = "nodes.json"


class Entry(TypedDict):
    """One registered key. Flower's commands do not list keys, so that the server keeps them itself."""

    name: str
    node: int


def admit(superlink: SuperLink, folder: Path, database_is_new: bool) -> dict[str, bytes]:
    """Register the keys that are new in ``folder``, unregister those that are gone; return name -> public key (PEM)."""
    keys = node_keys(folder)
    _check_distinct(keys, folder)
    path = superlink.home / REGISTRY
    known: dict[str, Entry] = {} if database_is_new or not path.exists() else json.loads(path.read_text())
    wanted = {key.decode(): name for name, key in keys.items()}
    for gone in known.keys() - wanted.keys():
        superlink.unregister(known.pop(gone)["node"])
        write_json(path, known)
    for key, name in wanted.items():
        node = known[key]["node"] if key in known else superlink.register(folder / f"{name}.pub")
        known[key] = Entry(name=name, node=node)
        write_json(path, known)  # one by one: what the SuperLink knows is never registered twice
    return keys


def names(home: Path) -> dict[int, str]:
    """Node id -> client's name, as registered; empty where relays show no keys."""
    path = home / REGISTRY
    if not path.exists():
        return {}
    return {entry["node"]: entry["name"] for entry in json.loads(path.read_text()).values()}


def _check_distinct(keys: dict[str, bytes], folder: Path) -> None:
    seen: dict[bytes, str] = {}
    for name, key in keys.items():
        if key in seen:
            raise ConfigError(
                f"{seen[key]} and {name} have the same key", where=str(folder), fix="give each client a key of its own"
            )
        seen[key] = name
