"""What the live page shows: read anew from a run's files at each request, changing none of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fedkd.errors import ConfigError, DataError, FedkdError
from fedkd.report import collect
from fedkd.report.budget import budget_report

_TOLD = re.compile(r"(round \d+(, attempt \d+)?|after the last round): .+|.+ is left out of this run from now on, .+")
_TOLD_LIMIT = 50


class Run:
    """A server's run directory, or a simulation's, which holds the clients' ledgers too."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where no run is."""
        found = [place for place in (path, path / "server", path / "run") if (place / "run.id").exists()]
        if not found:
            raise ConfigError(
                "there is no run here", where=str(path), fix="give the run directory: 'out' of server.yaml"
            )
        self._path, self._server = path, found[0]
        self._known: dict[str, dict[str, Any]] = {}

    def snapshot(self) -> dict[str, Any]:
        """Rounds, clients and what went wrong, JSON-able."""
        rows = self._rows()
        return {
            "name": self._path.resolve().name,
            "rounds": rows,
            "bytes_up": sum(row["bytes_up"] for row in rows),
            "bytes_down": sum(row["bytes_down"] for row in rows),
            "clients": self._clients(),
            "errors": self._errors(),
        }

    def _rows(self) -> list[dict[str, Any]]:
        try:
            text = (self._server / "metrics.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        try:
            return [json.loads(line) for line in text.splitlines()]
        except ValueError as error:
            raise DataError(f"not the rounds of a run: {error}", where=str(self._server / "metrics.jsonl")) from None

    def _clients(self) -> list[dict[str, Any]]:
        """Ledgers below the run directory, where there are any: a deployed server has none to show."""
        try:
            found = collect.exports([self._path])
        except ConfigError:
            return []
        except FedkdError as error:
            return [{"client": "?", "error": error.what}]
        return [self._client(name, export) for name, export in sorted(found.items())]

    def _client(self, name: str, export: Any) -> dict[str, Any]:
        head = str(export["head"])
        if self._known.get(name, {}).get("head") != head:  # accounting takes a while, and is a function of the ledger
            report = budget_report({name: export}).record()["clients"][name]
            self._known[name] = {
                "client": name,
                "head": head,
                "spent": {
                    unit: {key: told[key] for key in ("epsilon", "limit")} for unit, told in report["spent"].items()
                },
                "delta": report["delta"],
                "releases": report["charged"]["released"],
                "noise": report["noise"],
            }
        return self._known[name]

    def _errors(self) -> list[str]:
        """What a server in the background has told of refusals and failures, the newest last."""
        try:
            text = (self._server / "server.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line for line in text.splitlines() if _TOLD.fullmatch(line)][-_TOLD_LIMIT:]
