"""What long-lived processes say: plain lines for people, or one JSON object a line for machines.

A log line names clients, rounds, counts and refusal codes. Answers, labels, keys and private records are never logged.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal, TextIO

Form = Literal["text", "json"]
OURS = ("fedkd", "server", "client", "simulations")


def configure(form: Form, stream: TextIO) -> None:
    """Send our own packages' lines (from INFO) and everybody else's warnings to ``stream``. May be called again."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    # a library that we import installs a plain handler of its own, and every line would come twice
    root.handlers = [other for other in root.handlers if type(other) is not logging.StreamHandler] + [handler]
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
