"""Where a graph runs: the `Session` protocol and its implementations."""
