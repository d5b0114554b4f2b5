"""The log of a server: whose records are in it, and as what."""

import json
import logging

import pytest

from asyncembed.cli.log_lines import JsonLines, TextLines, set_up_log


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


def test_what_came_from_outside_begins_no_other_line_and_moves_no_cursor() -> None:
    written = TextLines("%(message)s").format(record("no model %s", "a\n2026 INFO all is well\x1b[2J"))
    assert written == r"no model a\n2026 INFO all is well\x1b[2J"


def test_an_error_keeps_its_lines() -> None:
    try:
        raise ValueError("no\x1b way")
    except ValueError as error:
        written = TextLines().format(record("failed", exc_info=(type(error), error, error.__traceback__)))
    assert written.startswith("failed\nTraceback")
    assert written.endswith(r"ValueError: no\x1b way")


@pytest.mark.parametrize("level", ["debug", "info"])
def test_what_other_packages_say_of_urls_and_headers_is_not_in_it(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of httpx each URL at INFO, of httpcore each header of an answer at DEBUG: signed links, cookies and passwords."""
    root = logging.getLogger()
    before, handlers = root.level, root.handlers[:]
    try:
        set_up_log(level, as_json=False)
        logging.getLogger("httpx").info("HTTP Request: GET http://me:secret@hub/model?Signature=secret")
        logging.getLogger("httpcore.http11").debug("receive_response_headers.complete (b'set-cookie', b'secret')")
        logging.getLogger("httpcore.http11").warning("it is slow")
        logging.getLogger("asyncembed.hub").info("it is here")
        logging.getLogger("uvicorn.error").info("it runs")
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)
    said = [line.split(maxsplit=3)[-1] for line in capsys.readouterr().err.splitlines()]
    assert said == ["it is slow", "it is here", "it runs"]
