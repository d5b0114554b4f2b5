"""For PyInstaller, which finds this by the package's entry point: what a packed program needs of asyncembed."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Where PyInstaller finds the hooks."""
    return [str(Path(__file__).parent)]
