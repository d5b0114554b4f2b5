"""A web app with Django, for any of its servers: sync and async views share one model.

    uv run uvicorn --lifespan off examples.web_django:asgi
    uv run gunicorn --threads 8 examples.web_django:wsgi
    uv run -m examples.web_django runserver --noreload
    curl 'localhost:8000/query?text=what+is+backpressure'
    curl localhost:8000/documents -H 'content-type: application/json' -d '["one", "two"]'
    curl localhost:8000/stats

Django has no hooks for the life of an app, and under WSGI every async view has an event loop of its own. So the model
lives on a loop in the background: the first request opens it, and it ends with the process. Sync views call it by
`asyncembed.sync`, async ones by `on_any_loop()`; as the model and its options are the same, both have the same workers,
and requests that arrive together are computed together. Each server process has workers of its own, also with
`--preload`. Under ASGI a client that goes away withdraws its work: Django cancels the view.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from asyncembed import TextEmbedding, sync
from asyncembed.errors import InputError, OverloadedError
from examples.quickstart import demo_model

MODEL = os.environ.get("MODEL") or demo_model()
MAX_QUEUED = int(os.environ.get("MAX_QUEUED", "1000"))

blocking = sync.TextEmbedding(MODEL, max_queued=MAX_QUEUED)
awaited = TextEmbedding(MODEL, max_queued=MAX_QUEUED).on_any_loop()


def query(request: HttpRequest) -> HttpResponse:
    """One vector; a sync view."""
    return JsonResponse(blocking.embed_query(request.GET["text"]).tolist(), safe=False)


async def documents(request: HttpRequest) -> HttpResponse:
    """A few vectors; an async view."""
    vectors = await awaited.embed_documents(json.loads(request.body))
    return JsonResponse(vectors.tolist(), safe=False)


def stats(_: HttpRequest) -> HttpResponse:
    """What waits and what was done."""
    now = blocking.open().stats()
    return JsonResponse({"queued": now.queued, "computed": now.items, "workers": now.workers})


class Refusals:
    """Middleware that tells clients what is wrong with their input, and when to come again."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self._get_response(request)

    def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponse | None:
        match error:
            case InputError():
                return JsonResponse({"detail": str(error)}, status=422)
            case OverloadedError():
                return JsonResponse({"detail": str(error)}, status=503, headers={"Retry-After": "1"})
        return None


urlpatterns = [path("query", query), path("documents", documents), path("stats", stats)]

# A project has these in its settings.py, asgi.py and wsgi.py.
settings.configure(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.Refusals"], ALLOWED_HOSTS=["localhost", "127.0.0.1"])
asgi = get_asgi_application()
wsgi = get_wsgi_application()


if __name__ == "__main__":
    execute_from_command_line(sys.argv)
