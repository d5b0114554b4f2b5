"""Debian's Chromium, without a window, at servers that run in a thread of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which
from typing import Any

from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.asgi_servers import serving


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; without one, Playwright's own, which says how it is installed."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=which("chromium"))
        yield browser
        browser.close()


@contextmanager
def serving_in_thread(app: Any) -> Iterator[str]:
    """Serve `app` on an event loop of its own; gives its URL."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(app)) as client:
        yield str(client.base_url).rstrip("/") + "/"


class Watched:
    """A page, with all that it asked for and complained of."""

    def __init__(self, page: Page) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
