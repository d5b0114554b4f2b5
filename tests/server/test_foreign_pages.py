"""Who asks a server that has no key: a page of another site must not, everybody else may."""

import httpx
import pytest

from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving

MODEL = "BAAI/bge-small-en-v1.5"
LOCAL, TEXT, JSON = ("127.0.0.1", 8000), "text/plain;charset=UTF-8", "application/json"


def is_foreign(headers: dict[str, str], *, server: tuple[str, int | None] | None = LOCAL, method: str = "POST") -> bool:
    from asyncembed.server.foreign_pages import is_of_foreign_page

    as_sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    return is_of_foreign_page({"headers": as_sent, "server": server, "method": method})


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"host": "localhost:8000"}, id="curl"),
        pytest.param({"host": "127.0.0.1:8000", "content-type": TEXT}, id="curl with a body of text"),
        pytest.param({"host": "[::1]:8000"}, id="IPv6"),
        pytest.param({"host": "host.docker.internal:8000"}, id="from a container"),
        pytest.param({"host": "embeddings:8000"}, id="a name of a network of containers"),
        pytest.param({"host": "embeddings.example.com"}, id="a proxy that passes the name on"),
        pytest.param({"host": "embeddings.example.com:8443"}, id="a proxy at another port"),
        pytest.param(
            {"host": "127.0.0.1:8000", "origin": "https://my.example", "content-type": JSON}, id="nginx's Host"
        ),
        pytest.param({"host": "my.example", "origin": "https://my.example", "content-type": TEXT}, id="its own page"),
        pytest.param({"host": "localhost:8000", "origin": "http://localhost:3000", "content-type": TEXT}, id="own app"),
        pytest.param({}, id="HTTP/1.0"),
    ],
)
def test_programs_and_proxies_and_pages_of_ones_own_are_no_strangers(headers: dict[str, str]) -> None:
    assert not is_foreign(headers)


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost.evil.example:8000", "null"])
@pytest.mark.parametrize("kind", [TEXT, "application/x-www-form-urlencoded", ""])
def test_a_page_of_another_site_may_not_post_what_needs_no_asking(origin: str, kind: str) -> None:
    headers = {"host": "localhost:8000", "origin": origin, "content-type": kind}
    assert is_foreign(headers)
    assert is_foreign(headers, server=("/run/socket", None))
    assert not is_foreign(headers, method="GET")  # whose answer it cannot read


@pytest.mark.parametrize("name", ["evil.example", "EVIL.example.", "127.0.0.1.nip.io", "localhost.evil.example"])
def test_a_name_that_leads_to_this_machine_by_a_strangers_will_is_not_answered(name: str) -> None:
    headers = {"host": f"{name}:8000", "content-type": JSON}
    assert is_foreign(headers)
    assert is_foreign(headers, method="GET")
    assert is_foreign({"host": name}, server=("::1", 80))
    assert not is_foreign(headers, server=("172.17.0.2", 8000))  # where other machines may ask as well
    assert not is_foreign(headers, server=None)


@pytest.mark.slow
async def test_a_server_without_a_key_refuses_strangers_unless_they_are_let_in() -> None:
    """Also where it is mounted in an app of somebody's own."""
    from fastapi import FastAPI

    from asyncembed.server import create_app

    async def statuses(client: httpx.AsyncClient, prefix: str = "") -> list[int]:
        port = client.base_url.port
        page = {"origin": "https://evil.example", "content-type": TEXT}
        answers = [
            await client.post(f"{prefix}/v1/embeddings", content=b'{"input": "a"}', headers=page),
            await client.get(f"{prefix}/v1/models", headers={"host": f"evil.example:{port}"}),
            await client.get(f"{prefix}/health", headers={"host": f"evil.example:{port}"}),
            await client.post(f"{prefix}/v1/embeddings", json={"input": "a"}),
        ]
        return [answer.status_code for answer in answers]

    with fake_models(dim=4):
        app = create_app(MODEL)
        async with serving(app) as client:
            assert await statuses(client) == [403, 403, 200, 200]
        async with serving(create_app(MODEL, foreign_pages=True)) as client:
            assert await statuses(client) == [200, 200, 200, 200]
        own = FastAPI(lifespan=app.router.lifespan_context)
        own.mount("/models", app)
        async with serving(own) as client:
            assert await statuses(client, "/models") == [403, 403, 200, 200]
