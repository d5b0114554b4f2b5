"""The fixtures of `asyncembed.testing`, found by an entry point: nothing more is imported until one is used."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncembed.testing import Fakes


@pytest.fixture
def asyncembed_fakes() -> "Iterator[Fakes]":
    """Every embedder that opens during the test is a fake. Gives the `Fakes`, to make inputs fail or batches slow."""
    from asyncembed.testing import fake_models

    with fake_models() as fakes:
        yield fakes


@pytest.fixture(scope="session")
def asyncembed_fakes_session() -> "Iterator[Fakes]":
    """The same from the first test that uses it to the end of the run, for fixtures that live longer than a test."""
    from asyncembed.testing import fake_models

    with fake_models() as fakes:
        yield fakes
