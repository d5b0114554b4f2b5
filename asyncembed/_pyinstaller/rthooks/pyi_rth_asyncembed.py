"""Runs before the program: a worker becomes one here, and never runs the program (`asyncembed.engine.frozen`)."""

import asyncembed  # noqa: F401
