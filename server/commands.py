"""Flower's own command line, pointed at one SuperLink and no other."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fedkd.errors import FedkdError
from fedkd.processes import environment, stop_group

_log = logging.getLogger(__name__)

FINISHED = "finished:"
COMPLETED = "finished:completed"
FAILED = "finished:failed"
_ANSWER_SECONDS = 180.0
_REASON_LIMIT = 2000
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_BANNER = "Using SuperLink:"
_NAME = "fedkd"


_RAISED = "ServerApp failed with exception"  # what Flower says of an app that ended with an error of its own


@dataclass(frozen=True)
class End:
    """How a run has ended, or how it is: Flower's status, and what it says about it."""

    status: str
    details: str

    @property
    def by_a_kill(self) -> bool:
        """Whether the ServerApp was cut off: it had no time to say that it failed."""
        return self.status == FAILED and not self.details.startswith(_RAISED)


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that listens on ``address``. ``home`` is Flower's directory for the commands that talk to it;
    ``authority`` (PEM) signed its certificate, None: the connection is in the clear."""

    home: Path
    address: str
    authority: Path | None = None

    def remember(self) -> None:
        """Tell Flower's commands about this SuperLink, and about no other: its default would start one of its own."""
        safety = "insecure = true" if self.authority is None else f"root-certificates = {_toml(self.authority)}"
        text = f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\naddress = "{self.address}"\n{safety}\n'
        (self.home / "config.toml").write_text(text, encoding="utf-8")

    def submit(self, staged: Path, app_config: Path) -> int:
        """Start the staged app; return the run's number."""
        setting = f"config='{app_config.absolute()}'"
        return int(self._flwr("run", str(staged.absolute()), _NAME, "--run-config", setting)["run-id"])

    def end(self, run_id: int) -> End | None:
        """How the run is; None while the SuperLink does not answer."""
        try:
            [run] = self._flwr("ls", _NAME, "--run-id", str(run_id))["runs"]
        except FedkdError as error:
            _log.warning("%s", error)
            return None
        return End(str(run["status"]), str(run.get("status-details", "")))

    def stop(self, run_id: int) -> None:
        """End the run, if it has not ended yet."""
        with contextlib.suppress(FedkdError):
            self._flwr("stop", str(run_id), _NAME)

    def stop_unfinished(self) -> None:
        """End what an earlier server left in the database: the SuperExec would start it beside the new run."""
        for earlier in self._flwr("ls", _NAME)["runs"]:
            if not earlier["status"].startswith(FINISHED):
                self.stop(int(earlier["run-id"]))

    def register(self, key: Path) -> int:
        """Let in the relay with this public key; return its node id."""
        return int(self._flwr("supernode", "register", str(key.absolute()), _NAME)["node-id"])

    def unregister(self, node_id: int) -> None:
        """Let the node in no more."""
        self._flwr("supernode", "unregister", str(node_id), _NAME)

    def log(self, run_id: int, seen: int, on_line: Callable[[str], None]) -> int:
        """Pass on the log's lines after the first ``seen`` until the stream ends; return how many lines there are."""
        command = [_executable(), "log", str(run_id), _NAME, "--stream"]
        process = subprocess.Popen(
            command, env=environment(self.home.absolute()), cwd=self.home, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        count = 0
        try:
            for line in process.stdout:
                count += 1
                if count > seen and not line.startswith(_BANNER):
                    on_line(_COLOURS.sub("", line.rstrip()))
        finally:
            stop_group(process, grace=2.0)
            process.stdout.close()
        return max(seen, count)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Flower's answer to a command. In a session of its own, out of reach of the terminal's Ctrl-C."""
        command = [_executable(), *arguments, "--format", "json"]
        try:
            result = subprocess.run(
                command, env=environment(self.home.absolute()), cwd=self.home, start_new_session=True,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise FedkdError(f"flwr {arguments[0]} did not answer", where=self.address) from error
        answer = _json(result.stdout)
        if not answer.get("success"):
            reason = str(answer.get("error-message") or result.stdout + result.stderr).strip()
            raise FedkdError(f"flwr {arguments[0]} failed", where=self.address, fix=reason[-_REASON_LIMIT:])
        return answer


def _json(text: str) -> dict[str, Any]:
    """The object in a command's output; some commands print a line for people before it."""
    try:
        return cast(dict[str, Any], json.loads(text[text.index("{") :]))
    except ValueError:
        return {}


def _toml(path: Path) -> str:
    return json.dumps(str(path.absolute()))


def _executable() -> str:
    return str(Path(sys.executable).parent / "flwr")
