"""What a command that runs for long writes to its log, on stderr: lines for people, or a JSON document each."""

import json
import logging
from datetime import UTC, datetime

from asyncembed.cli.output import visible

OURS = frozenset({"asyncembed", "uvicorn"})
"""Whose records below WARNING are written. Those of other packages have URLs and headers in them, and so tokens,
signatures of links and passwords of proxies."""


def set_up_log(level: str, *, as_json: bool) -> None:
    """Have what is logged in this process from `level` on written to stderr: of other packages only what went wrong."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.partition(".")[0] in OURS)
    handler.setFormatter(JsonLines() if as_json else TextLines("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """Lines for people: what a request has brought in begins no other line, and does nothing to a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        record.message = record.message.replace("\n", "\\n")
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class JsonLines(logging.Formatter):
    """A JSON document for each record: time, level, logger, message, what `extra={"fields": ...}` has, and errors."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
