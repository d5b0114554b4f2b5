"""What a file of a stranger may hold: JSON of any shape, and valid JSON with a part of any shape in it."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# What has been met in attacks: numbers that overflow, texts that are no text, names that lead elsewhere.
NASTY: tuple[Any, ...] = (
    -1, 0, 5, 2**31, 2**63, 10**400, 1e308, float("inf"), float("nan"), True, None,
    "", "\ud800", "\0", "x" * 5000, "../..", "/etc/passwd", "C:\\x", [], {}, [[]], {"": {}}, [None], ["mean", 5],
)  # fmt: skip

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20)
any_json: st.SearchStrategy[Any] = st.sampled_from(NASTY).map(copy.deepcopy) | st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def spoilt(draw: st.DrawFn, valid: Any) -> Any:
    """`valid` with one to three of its parts, itself perhaps, replaced by any JSON or left out."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        holder, key = draw(st.sampled_from([(None, None), *places]))
        if holder is None:
            value = draw(any_json)
        elif draw(st.booleans()):
            holder[key] = draw(any_json)
        else:
            del holder[key]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each part of a nested value, as what holds it and its key there; a number of a list counts as one."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])
