"""What one worker does with one batch: a module per family, and what they share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncembed.encoders.registry import build

__all__ = ["build"]


if not TYPE_CHECKING:  # type checkers know all names there are

    def __getattr__(name: str) -> object:
        # Whoever only passes on what encoders take and give, as the process of the caller does, needs none of them.
        if name != "build":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from asyncembed.encoders.registry import build

        return build
