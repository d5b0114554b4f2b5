"""What a text costs by its length."""

from hypothesis import given
from hypothesis import strategies as st

from asyncembed.encoders.run_cost import SHORT_TOKENS, cost_of

WIDTHS = st.none() | st.integers(1, 20_000)


@given(st.integers(1, SHORT_TOKENS), WIDTHS)
def test_a_short_text_costs_its_tokens(tokens: int, attention_tokens: int | None) -> None:
    assert cost_of(tokens, attention_tokens) == tokens


def test_beyond_that_the_square_counts() -> None:
    assert cost_of(4096, None) == 4096
    # 3,072 tokens: the attention takes as long as all else, where for 512 it takes a sixth of that.
    assert cost_of(3072, 3072) == 3072 * 2 * 3072 // (3072 + 512)


@given(st.integers(1, 100_000), WIDTHS)
def test_one_more_token_never_costs_less(tokens: int, attention_tokens: int | None) -> None:
    cost = cost_of(tokens, attention_tokens)
    assert tokens <= cost < cost_of(tokens + 1, attention_tokens)
