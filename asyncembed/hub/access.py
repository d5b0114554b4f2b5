"""How the hub is used: what a caller says of it, built once and passed on whole, and what a download puts up with."""

import os
from dataclasses import dataclass, field

from asyncembed.hub.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPolicy:
    """When a download gives up, waits and divides its work. Users have the defaults; tests have less time."""

    try_limit: int = 6
    """Tries in a row without progress, before we give up."""

    resolve_try_limit: int = 3
    """Tries with a name that no one can resolve, at the first contact: within two seconds it is clear that this
    computer is offline, or the name is wrong."""

    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 10.0
    """Bounds of the exponential backoff; the wait is drawn from [half, whole] of it, so that clients spread."""

    longest_pause_seconds: float = 330.0
    """The longest pause that a server may ask for: the hub counts requests in windows of 300 s."""

    stuck_seconds: float = 120.0
    """When the holder of a lock has written nothing for so long, we go on without the lock."""

    bar_grace_seconds: float = 2.0
    """How long the end of a download waits for a terminal that takes no output."""

    split_minimum_bytes: int = 16 * 2**20
    """A smaller file comes in one stream: its ranges would cost more requests than they save time."""

    stream_minimum_bytes: int = 8 * 2**20
    """No stream is started for less."""

    write_bytes: int = 2**20
    """How much a stream gathers before it goes to disk; with the connections the bound of the memory in use."""

    progress_minimum_bytes: int = 64 * 2**10
    """A try that gained less counts as a failure in a row: a trickle would be tried for ever."""

    watch_seconds: float = 1.0
    """How often the connections are looked at."""

    lag_seconds: float = 5.0
    """How long a connection's speed is measured before it counts, and is averaged over."""

    long_seconds: float = 10.0
    """What is done sooner than that needs no help."""

    document_limit_bytes: int = 32 * 2**20
    """A page of the tree is a few hundred kilobytes; more than this is not one."""

    page_limit: int = 1000
    """Pages of a tree, of up to 1000 entries; a server that pages for ever is none that we know."""

    archive_limit_bytes: int = 16 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """How the hub and its cache are used.

    Attributes:
        revision: Branch, tag or commit on the hub; None: the default branch.
        cache_dir: Cache instead of the one that huggingface_hub uses.
        local_files_only: Ask no network.
        token: Access token for the hub; None: the usual one, True: it must be there, False: none.
        progress: See `asyncembed.hub.progress.Progress`.
        refresh: Ask where a branch is now, although some commit of it is in the cache.
        verify: Read what is in the cache, and replace what is damaged (sizes are always compared).
        policy: When to give up.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)
    progress: Progress = None
    refresh: bool = False
    verify: bool = False
    policy: DownloadPolicy = DownloadPolicy()

    @property
    def may_ask(self) -> bool:
        """Whether the network may be used."""
        # Imported by `cache_root` already, in a thread: this is asked on the event loop, too.
        from huggingface_hub import constants

        return not self.local_files_only and not constants.is_offline_mode()
