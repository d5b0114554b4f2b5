"""What type checkers are to make of the public classes: checked by mypy and pyright, and never run."""
