"""Writes ``docs/reference.md`` from the code: commands, configuration keys, refusal codes, messages, Python API.

Run ``python docs/make_reference.py`` after a change; a test compares the committed file with a fresh one.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedkd import cli, wire
from fedkd.config import KINDS

OUT = Path(__file__).with_name("reference.md")

CODES = {
    "malformed": "the message is not one of the schema",
    "proxy_not_allowed": "the policy does not name this proxy set",
    "proxy_not_held": "the policy names this proxy set, and the client holds another version of it",
    "label_list_differs": "the offer's number of examples or classes is not that of the client's proxy set",
    "too_many_rounds": "more rounds than `max_rounds` of the policy, or a round outside the contract",
    "too_many_answers": "more proxy examples a round than `max_answers`, or others than the contract's number",
    "mechanism_not_allowed": "the policy has no mechanism for what the server makes of answers",
    "too_few_clients": "a sum over fewer than 20 clients",
    "budget_exhausted": "the run, or this round, would spend more than the policy's limit",
    "no_contract": "the run has no contract in the ledger, or a newer run has closed it",
    "contract_differs": "the offer or the policy is not the one that the contract was drawn up under",
    "plan_differs": "the round has been charged for another plan",
    "round_out_of_order": "a later round has been charged already",
    "stale_soft_labels": "the changes build on soft labels that the client does not hold; the server sends all of them",
    "rolled_back": "the server has seen a newer ledger of this client: it was rolled back, or copied",
    "late": "not ready at the policy's `release_offset`; the answer leaves at the next request",
    "failed": "anything else; the reason stays on the client's console",
}

API = {
    "fedkd": ["load_student", "load_teacher"],
    "fedkd.distill.model": ["Model"],
    "fedkd.data.sources": ["Examples", "load", "check", "read_inputs"],
    "fedkd.data.proxy": ["ProxySet"],
    "fedkd.config": ["load", "dump"],
    "fedkd.device.export": ["export", "export_file"],
    "fedkd.device.measure": ["open_runner", "predict", "latency", "parity"],
    "fedkd.device.versions": ["Version", "Versions"],
    "fedkd.device.serving": ["Served", "Serving"],
    "fedkd.device.gate": ["promote", "judge", "Verdict"],
    "fedkd.privacy.events": ["PrivacyEvent", "Spent"],
    "fedkd.privacy.accounting": ["Pld", "ClosedForm", "epsilon", "curve", "gaussian_epsilon", "gaussian_delta"],
    "fedkd.privacy.calibration": ["noise_multiplier"],
    "fedkd.privacy.ledger": ["Ledger"],
    "fedkd.privacy.audit": ["Errors", "paired_bounds", "Guesses", "Evidence", "Finding", "judge"],
    "fedkd.privacy.noise_audit": ["shortfall", "distance", "correlation", "pairs", "lags"],
    "fedkd.report.collect": ["ledgers", "exports", "provenance"],
    "fedkd.report.budget": ["budget_report"],
    "fedkd.report.render": ["render"],
    "fedkd.report.planning": ["Schedule", "Plan", "plan", "what_if"],
    "fedkd.continual.metrics": ["acc", "aia", "bwt", "fwt", "forgetting", "learning_accuracy", "summary"],
    "simulations.runner": ["Simulation", "Options"],
    "simulations.continual.run": ["run"],
    "simulations.audits.suite": ["audit"],
    "simulations.audits.setting": ["Setting", "Sizes"],
    "fedkd.errors": [
        "FedkdError", "ConfigError", "DataError", "WireError", "PrivacyError", "BudgetExceeded", "LedgerError",
        "ClientFailure",
    ],
}  # fmt: skip

SHOWN = {
    "Ledger": ["read", "verify", "export"], "Model": ["predict", "save", "open"], "PrivacyEvent": ["record"],
    "Schedule": ["epsilon", "noise", "rounds"], "Plan": [],
}  # fmt: skip
"""Methods of classes whose other methods are for fedkd itself."""

INTRODUCTION = """# Reference

Made from the code by `docs/make_reference.py`: do not edit it by hand.

- [Commands](#commands)
- [Configuration](#configuration)
- [Refusal codes](#refusal-codes)
- [Messages](#messages)
- [Python API](#python-api)
"""


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _commands(), _configuration(), _codes(), _messages(), _api()]
    return "\n".join(part.strip() + "\n" for part in parts)


# -- commands ----------------------------------------------------------------------------------------------------------


def _commands() -> str:
    app = typer.Typer(name="fedkd", no_args_is_help=True, add_completion=False)
    for found in sorted(pkgutil.iter_modules(cli.__path__), key=lambda found: found.name):
        module = import_module(f"{cli.__name__}.{found.name}")
        if hasattr(module, "register"):
            module.register(app)
    lines = [
        "## Commands",
        "",
        "An error that a user can mend is told on standard error with what, where and fix; the exit code is 1.",
        "Set `FEDKD_DEBUG=1` to see its traceback. Ctrl-C ends with 130, wrong usage with 2.",
    ]
    for name, command in _leaves(typer.main.get_command(app), "fedkd"):
        lines += ["", f"### `{name}`", "", _one_line(command.help), "", *_parameters(command)]
    return "\n".join(lines)


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for below in sorted(command.commands):
        yield from _leaves(command.commands[below], f"{name} {below}")


def _parameters(command: Any) -> list[str]:
    meanings = _meanings(command.callback)
    rows = [_parameter(parameter, meanings) for parameter in command.params if parameter.name != "help"]
    return _table(("argument or option", "value", "default", "meaning"), rows) if rows else ["No arguments."]


def _meanings(function: Any) -> dict[str, str]:
    """From the signature: some versions of click drop the help of an argument."""
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    return {name: part.help for name, hint in hints.items() for part in getattr(hint, "__metadata__", ()) if part.help}


def _parameter(parameter: Any, meanings: dict[str, str]) -> tuple[str, ...]:
    argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if argument else ", ".join(parameter.opts)
    flag = bool(getattr(parameter, "is_flag", False))
    value = "" if flag else str(parameter.metavar or parameter.type.name).lower()
    if choices := getattr(parameter.type, "choices", None):
        value = " \\| ".join(choices)
    several = " (several)" if parameter.nargs == -1 or getattr(parameter, "multiple", False) else ""
    default = "required" if parameter.required else "" if flag or not parameter.default else f"`{parameter.default}`"
    return f"`{name}`", value + several, default, _one_line(meanings.get(parameter.name))


# -- configuration -----------------------------------------------------------------------------------------------------


def _configuration() -> str:
    lines = [
        "## Configuration",
        "",
        "Every file is YAML, and every key that is not listed here is refused. Paths are relative to the file.",
        "`fedkd config show --kind KIND FILE` checks a file and fills in the defaults; `fedkd config schema KIND`",
        "prints the JSON schema. A key with a dot is nested; `[]` stands for each entry of a list.",
        "`NAME` stands for each name of a mapping.",
    ]
    for name, kind in KINDS.items():
        rows = [row for key, field, schema in _keys(kind) for row in [_key(key, field, schema)]]
        lines += ["", f"### {name}", "", _one_line(kind.__doc__), ""]
        lines += _table(("key", "type", "default", "meaning"), rows)
    return "\n".join(lines)


def _keys(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, dict[str, Any]]]:
    schemas = kind.model_json_schema()["properties"]
    for name, field in kind.model_fields.items():
        below = next((part for part in _parts(field.annotation) if _is_model(part)), None)
        if below is None:
            yield prefix + name, field, schemas[name]
            continue
        several = "[]" if schemas[name].get("type") == "array" else ""
        several = ".NAME" if "additionalProperties" in schemas[name] else several
        if several or field.is_required() or field.default is None:
            yield prefix + name, field, schemas[name]
        yield from _keys(below, f"{prefix}{name}{several}.")


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _key(key: str, field: FieldInfo, schema: dict[str, Any]) -> tuple[str, ...]:
    default = "required" if field.is_required() else f"`{_value(field.default)}`"
    return f"`{key}`", _type(schema), default, _one_line(field.description)


def _value(default: Any) -> str:
    """As YAML would have it."""
    if isinstance(default, BaseModel):
        return str(getattr(default, "kind", "{}"))
    if isinstance(default, tuple):
        return "[" + ", ".join(_value(one) for one in default) + "]"
    if isinstance(default, dict):
        return "{" + ", ".join(f"{key}: {_value(one)}" for key, one in default.items()) + "}"
    return str(default).lower() if isinstance(default, bool) else "null" if default is None else str(default)


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "enum" in schema:
        return " \\| ".join(str(one) for one in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "$ref" in schema:
        return "mapping"
    kind = {"object": "mapping", "array": "list"}.get(schema.get("type", ""), schema.get("type", "mapping"))
    if kind == "list" and "type" in schema.get("items", {}):
        kind = f"list of {schema['items']['type']}s"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {_bound(schema[name])}" for name, sign in bounds.items() if name in schema]
    return " ".join([kind, ", ".join(limits)]).strip()


def _bound(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if power >= 32 and value == 2**power else f"{value:g}"


# -- messages ----------------------------------------------------------------------------------------------------------


def _codes() -> str:
    codes = [code.value for code in wire.Code]
    if set(codes) != set(CODES):
        raise SystemExit(f"docs/make_reference.py: say what these codes mean: {set(codes) ^ set(CODES)}")
    lines = ["## Refusal codes", "", "All that a server learns of a client that says no.", ""]
    return "\n".join([*lines, *_table(("code", "meaning"), [(f"`{code}`", CODES[code]) for code in codes])])


def _messages() -> str:
    lines = [
        "## Messages",
        "",
        f"Schema version {wire.SCHEMA}; at most {wire.MAX_BYTES // 2**20} MiB each. A message has exactly the fields",
        "of its kind. `Released` rows are built by a mechanism, under an event that the ledger has charged; as bytes",
        "they are a float16 or float32 matrix, and what else the object holds is not sent.",
    ]
    for kind in get_args(wire.Message):
        lines += ["", f"### `{kind.kind}`", "", _one_line(kind.__doc__), ""]
        lines += _table(("field", "type"), [(f"`{field.name}`", f"`{field.type}`") for field in fields(kind)])
    return "\n".join(lines)


# -- Python ------------------------------------------------------------------------------------------------------------


def _api() -> str:
    lines = ["## Python API"]
    for module, names in API.items():
        lines += ["", f"### `{module}`"]
        for name in names:
            lines += ["", *_symbol(name, getattr(import_module(module), name))]
    return "\n".join(lines)


def _symbol(name: str, symbol: Any) -> list[str]:
    error = isinstance(symbol, type) and issubclass(symbol, Exception)
    lines = [f"**`{name}{'' if error or symbol.__init__ is object.__init__ else _signature(symbol)}`**", ""]
    lines += _text(symbol)
    if error or not isinstance(symbol, type):
        return lines
    for method, raw in vars(symbol).items():
        found = getattr(symbol, method)
        own = getattr(found, "__qualname__", "").startswith(name) or isinstance(raw, property)
        if method.startswith("_") or not own or not found.__doc__ or method not in SHOWN.get(name, [method]):
            continue
        signature = "" if isinstance(raw, property) else _signature(found)
        lines += ["", f"`.{method}{signature}`: {_one_line(found.__doc__)}"]
    return lines


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    kept = [_argument(p) for p in signature.parameters.values() if p.name not in ("self", "cls")]
    if keyword := next((i for i, p in enumerate(kept) if p[0]), None):
        kept.insert(keyword, (False, "*"))
    returns = "" if isinstance(function, type) else f" -> {signature.return_annotation}"
    return f"({', '.join(text for _, text in kept)}){returns}"


def _argument(parameter: inspect.Parameter) -> tuple[bool, str]:
    """Whether it is taken by keyword only, and its text."""
    text = f"{parameter.name}: {parameter.annotation}"
    if parameter.default is not parameter.empty:
        # a function as a default would print its address
        text += f" = {'...' if inspect.isroutine(parameter.default) else repr(parameter.default)}"
    return parameter.kind is parameter.KEYWORD_ONLY, text


def _text(symbol: Any) -> list[str]:
    return inspect.cleandoc(symbol.__doc__ or "").splitlines()


def _one_line(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split()).replace("|", "\\|")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "| " + " | ".join("---" for _ in header) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


if __name__ == "__main__":
    OUT.write_text(reference(), encoding="utf-8")
    print(OUT, file=sys.stderr)
