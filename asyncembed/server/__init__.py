"""A server for embeddings: models behind the HTTP interfaces that clients know.

```python
app = create_app("BAAI/bge-small-en-v1.5")  # an ASGI app: `uvicorn.run(app)`, or any other ASGI server
```

`asyncembed serve MODEL...` does the same in a shell. Needs `pip install "asyncembed[server]"`.
"""

try:
    import fastapi as _fastapi  # noqa: F401 (asked for here, so that one sentence says what is missing)
    import msgspec as _msgspec  # noqa: F401
    import orjson as _orjson  # noqa: F401
    import prometheus_client as _prometheus_client  # noqa: F401
except ImportError as _error:
    raise ImportError('asyncembed.server needs some packages: pip install "asyncembed[server]"') from _error

from asyncembed.server.app import create_app
from asyncembed.server.request_limits import Limits

__all__ = ["Limits", "create_app"]
