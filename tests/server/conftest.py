"""What the tests of the dialects share: a server with a fake model of each class."""

from collections.abc import AsyncGenerator

import httpx
import pytest

from tests.integrations.conftest import pytest_ignore_collect
from tests.support.asgi_servers import serving

__all__ = ["pytest_ignore_collect"]


@pytest.fixture(scope="module")
async def all_kinds() -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a server that has one model of each class, by its family, and a second one for texts."""
    from asyncembed.server import Limits, create_app
    from tests.support.served_fakes import fakes_of_all_kinds

    async with serving(create_app(fakes_of_all_kinds(), limits=Limits(max_inputs=8))) as client:
        yield client
