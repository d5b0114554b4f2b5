"""What one worker does with one batch: a module per family, and what they share."""

from asyncembed.encoders.registry import build

__all__ = ["build"]
