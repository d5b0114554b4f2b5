"""The log as JSON."""

import json
import logging

from asyncembed.cli.log_lines import JsonLines


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "asyncembed", "levelname": "INFO", "msg": message, "args": args, **more})


def test_a_record_is_a_document_with_its_fields() -> None:
    line = JsonLines().format(record("served %s", "é", fields={"status": 200}))
    written = json.loads(line)
    assert written.pop("time").endswith("+00:00")
    assert written == {"level": "info", "logger": "asyncembed", "message": "served é", "status": 200}
    assert "é" in line


def test_an_error_is_one_line_too() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError as error:
        line = JsonLines().format(record("failed", exc_info=(type(error), error, error.__traceback__)))
    assert "\n" not in line
    assert json.loads(line)["error"].endswith("ValueError: no\nway")
