"""Reads configurations from YAML and from ``key=value``, and writes them; an error points at file and line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedkd.config.base import Model
from fedkd.config.client import ClientConfig, Device, Live, RelayConfig
from fedkd.config.continual import Continual
from fedkd.config.learning import Distil
from fedkd.config.policy import Policy
from fedkd.config.scenario import Scenario
from fedkd.config.server import ServerConfig
from fedkd.errors import ConfigError

KINDS: dict[str, type[Model]] = {
    "scenario": Scenario,
    "continual": Continual,
    "server": ServerConfig,
    "client": ClientConfig,
    "relay": RelayConfig,
    "policy": Policy,
    "device": Device,
    "live": Live,
    "distil": Distil,
}

M = TypeVar("M", bound=Model)


def default_simulation(run_id: int) -> Path:
    """Where Flower's simulation runtime finds the server's configuration of a run that names none."""
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return home / "fedkd" / f"run-{run_id}" / "server.yaml"


def load(kind: type[M], path: Path | None, overrides: Sequence[str] = ()) -> M:
    """Read a YAML file (none: the defaults) and apply ``key=value`` overrides. Raises ConfigError."""
    tree: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if path is not None:
        tree, lines = _read(path)
    for override in overrides:
        _override(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _explain(kind, error, path, lines, tree) from None


def dump(model: Model) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree, lines = yaml.safe_load(text), dict(_lines(node))
    except RecursionError:
        raise ConfigError("the configuration contains itself, or is nested too deep", where=str(path)) from None
    except FileNotFoundError:
        raise ConfigError("the configuration file does not exist", where=str(path), fix="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError("a configuration is a mapping of keys to values", where=str(path))
    return tree, lines


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _lines(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}{index}", value.start_mark.line + 1
            yield from _lines(value, f"{prefix}{index}.")


def setting(text: str) -> tuple[str, Any]:
    """Key and value of ``key=value``, the value in YAML. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, not {text!r}", fix="for example: --set privacy.epsilon=8")
    try:
        return key.strip(), _scalar(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value is not valid YAML: {error}", where=f"--set {text}") from None


def mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises ConfigError."""
    return _read(path)[0]


def _override(tree: dict[str, Any], override: str) -> None:
    key, value = setting(override)
    *parents, leaf = key.split(".")
    for parent in parents:
        below = tree.get(parent)
        tree = tree.setdefault(parent, {}) if not isinstance(below, dict) else below
        if not isinstance(tree, dict):
            raise ConfigError(f"{parent!r} has no keys below it", where=f"--set {override}")
    tree[leaf] = value


def _scalar(text: str) -> Any:
    """A YAML value; unlike YAML 1.1, ``1e-5`` is a number."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return yaml.safe_load(text)


def _explain(
    kind: type[Model], error: ValidationError, path: Path | None, lines: Mapping[str, int], tree: Mapping[str, Any]
) -> ConfigError:
    problems, wheres = [], []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        line = lines.get(key) or lines.get(key.rpartition(".")[0])
        source = f"{path}:{line}" if path and line else str(path) if path else "--set"
        wheres.append(f"{source}, key {key!r}" if key else source)
        if problem["type"] == "extra_forbidden":
            problems.append(_nearest(kind, key))
        else:
            problems.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}" if key else problem["msg"])
    return ConfigError(
        "the configuration is not valid: " + "; ".join(problems),
        where="; ".join(wheres),
        fix=f"'fedkd config schema {_name(kind)}' lists every key",
    )


def _name(kind: type[Model]) -> str:
    return next(name for name, known in KINDS.items() if known is kind)


def _nearest(kind: type[Model], key: str) -> str:
    names = list(keys(kind))
    leaves = {name.rpartition(".")[2]: name for name in names}
    near = difflib.get_close_matches(key, names, 1, 0.6)
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], list(leaves), 1, 0.5)]
    return f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a configuration of this kind understands."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from keys(below, f"{prefix}{name}.")
