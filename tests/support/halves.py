"""Which half of the tests is run: the fast one tries less, and imports less."""

import pytest


def is_fast_half(config: pytest.Config) -> bool:
    return "not slow" in config.option.markexpr
