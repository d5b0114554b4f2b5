"""What is learnt of a model while it computes."""

SPEED_MEMORY = 0.8
"""How much what was measured before counts beside the latest batch."""


class Speed:
    """How long the batches of one model and mode take: workers of a pool that share it learn from each other.

    A plain object; whoever takes a batch's answer calls `measure`.
    """

    __slots__ = ("batch_seconds", "seconds_per_token")

    def __init__(self) -> None:
        self.batch_seconds = 0.0
        """Of the latest batches, as they came; 0 until one was measured."""
        self.seconds_per_token = 0.0
        """By the estimated tokens of a batch, padding included; 0 until one was measured."""

    @property
    def is_known(self) -> bool:
        """Whether any batch was measured."""
        return self.batch_seconds > 0

    def measure(self, seconds: float, size: int) -> None:
        """Learn from a batch of `size` estimated tokens."""
        weight = 1 - SPEED_MEMORY if self.is_known else 1.0
        self.batch_seconds += weight * (seconds - self.batch_seconds)
        self.seconds_per_token += weight * (seconds / max(1, size) - self.seconds_per_token)

    def seconds(self, size: int) -> float:
        """How long a batch of `size` estimated tokens will take."""
        return self.seconds_per_token * size
