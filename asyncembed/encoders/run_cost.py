"""What a run of a graph costs, in tokens of short texts: the one measure of the engine and of the workers.

Attention grows with the square of a text's length, and all else with its length. Of encoders 384, 768 and 1024 wide a
text of as many tokens as 3.6, 3.9 and 4.0 times their width cost as much for its attention as for the rest (measured up
to 4,096 tokens, on one core).
"""

SHORT_TOKENS = 512
"""A text of no more counts as its tokens: attention is a small part of its cost, and most models take no longer one."""

ATTENTION_WIDTHS = 4
"""By which a model's width gives the `attention_tokens` of `cost_of`."""


def cost_of(tokens: int, attention_tokens: int | None) -> int:
    """What a text of so many tokens costs, in tokens of a text of `SHORT_TOKENS`.

    `attention_tokens` are those of a text whose attention costs as much as all else; None: nothing grows with a square.
    """
    if attention_tokens is None or tokens <= SHORT_TOKENS:
        return tokens
    return tokens + tokens * (tokens - SHORT_TOKENS) // (attention_tokens + SHORT_TOKENS)
