"""The page at `/`: what is served, live numbers, and boxes to try things.

It is one file that fetches nothing from elsewhere, and may run nothing but its own script. It holds nothing of this
server: what it shows comes from `/page.json`, which needs the API key where there is one.
"""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from time import monotonic

import msgspec

from asyncembed import __version__
from asyncembed.embedders.base import Embedder
from asyncembed.engine.supervisor import Supervisor
from asyncembed.server.endpoint import Reply, Route
from asyncembed.server.model_facts import ModelFacts
from asyncembed.server.openai_dialect import OpenAIDialect
from asyncembed.server.served import Served
from asyncembed.server.service import Service

# ---------------------------------------------------------------- what the page is told


class RequestCounts(msgspec.Struct):
    """What came of requests so far.

    Attributes:
        in_progress: Those that are not answered yet.
        statuses: Status, and how many ended so.
        times: Seconds, and how many of those that were served took about as long.
    """

    in_progress: int
    statuses: list[tuple[int, int]]
    times: list[tuple[float, int]]


class PoolState(msgspec.Struct):
    """Workers, and what waits for them."""

    workers: int
    workers_ready: int
    workers_restarted: int
    threads: int
    queued_interactive: int
    queued_bulk: int
    in_flight: int


class ModelState(msgspec.Struct):
    """What a model is, and what it has computed so far."""

    name: str
    model: str
    kind: str
    dim: int | None
    max_length: int | None
    precision: str | None
    runs_on: str
    revision: str | None
    inputs: int
    failed: int
    refused: int
    truncated: int
    batches: int
    tokens: int
    padded_tokens: int


class PageAnswer(msgspec.Struct):
    """All that the page shows: it compares the counts of two moments."""

    version: str
    started: int
    uptime_seconds: float
    requests: RequestCounts
    pools: list[PoolState]
    models: list[ModelState]


_encode = msgspec.json.Encoder().encode


async def numbers(service: Service, _: None) -> bytes:
    """What the page shows: models, and counts that only grow."""
    meter, facts = service.meter, [service.facts(model) for model in service.models]
    engines = dict.fromkeys(fact.engine for fact in facts if fact.is_loaded)  # models may share one
    return _encode(
        PageAnswer(
            version=__version__,
            started=max((model.created for model in service.models), default=0),
            uptime_seconds=monotonic() - service.began,
            requests=RequestCounts(meter.in_progress, sorted(meter.by_status.items()), meter.times()),
            pools=[_pool(engine) for engine in engines],
            models=[_model(model, fact) for model, fact in zip(service.models, facts, strict=True)],
        )
    )


def _pool(engine: Supervisor) -> PoolState:
    stats = engine.stats()
    return PoolState(
        workers=stats.workers,
        workers_ready=stats.workers_ready,
        workers_restarted=stats.workers_restarted,
        threads=engine.plan.threads,
        queued_interactive=stats.queued_interactive,
        queued_bulk=stats.queued_bulk,
        in_flight=stats.in_flight,
    )


def _model(served: Served[Embedder], facts: ModelFacts) -> ModelState:
    embedder = served.embedder
    stats = embedder.stats()
    return ModelState(
        name=served.name,
        model=embedder.model_name,
        kind=embedder.family,
        dim=facts.dim,
        max_length=embedder.max_length if facts.is_loaded else None,
        precision=facts.precision if facts.is_loaded else None,
        runs_on=facts.runs_on if facts.is_loaded else "not loaded yet",
        revision=facts.revision if facts.is_loaded else None,
        inputs=stats.items,
        failed=stats.failed,
        refused=stats.refused,
        truncated=stats.truncated,
        batches=stats.batches,
        tokens=stats.tokens,
        padded_tokens=stats.padded_tokens,
    )


# ---------------------------------------------------------------- the page

_OURS = re.compile(rb"<(style|script)[^>]*>(.*?)</\1>", re.DOTALL)


def _policy(page: bytes) -> str:
    """What a browser may do with the page: run its own script and style, told by their hashes, and ask this server."""
    hashes = {
        name.decode(): f"'sha256-{b64encode(sha256(content).digest()).decode()}'"
        for name, content in _OURS.findall(page)
    }
    rules = {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{rule} {what}" for rule, what in rules.items())


@cache
def _page() -> Reply:
    body = files(__package__).joinpath("page.html").read_bytes()
    headers = {
        "content-security-policy": _policy(body),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }
    return Reply(body, b"text/html; charset=utf-8", headers)


async def page(_: Service, __: None) -> Reply:
    """The page itself."""
    return _page()


class Page(OpenAIDialect):
    """The page and what it asks for; refusals have OpenAI's form."""

    name = "page"
    routes: tuple[Route, ...] = (
        Route(path="/", handle=page, media_type="text/html", answer=str, summary="A page to look at.", needs_key=False),
        Route(path="/page.json", handle=numbers, answer=PageAnswer, summary="The numbers of the page at `/`."),
    )
