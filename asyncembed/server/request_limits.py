"""What one request may ask for."""

from dataclasses import dataclass, fields

from asyncembed.checks import check_count

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for; what asks for more is refused before anything is computed.

    Attributes:
        max_inputs: Texts, images or documents.
        max_tokens: Of all its inputs together, each cut at the model's limit, as they would be computed.
        max_bytes: Of its body. What is larger is refused (413) before it is read whole.
    """

    max_inputs: int = 2048
    max_tokens: int = 300_000
    max_bytes: int = 32 * MEBIBYTE

    def __post_init__(self) -> None:
        for one in fields(self):
            check_count(one.name, getattr(self, one.name), minimum=1, may_be_none=False)
