"""The hub as tests call it: with a policy that waits for next to nothing, and that a test may change."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncembed import hub
from asyncembed.catalogue.spec import Origin
from asyncembed.hub import DownloadPolicy, HubAccess, Listing

policy = DownloadPolicy(first_wait_seconds=0.01)


def change_policy(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Have the downloads of this test get another policy."""
    monkeypatch.setattr(f"{__name__}.policy", replace(policy, **values))  # type: ignore[arg-type]


async def download_files(
    origins: Sequence[Origin], *, patterns: Sequence[str], required: Sequence[str] = (), **access: Any
) -> Path:
    return await hub.download_files(
        origins, HubAccess(**{"policy": policy, **access}), patterns=patterns, required=required
    )


async def list_files(repo: str, **access: Any) -> Listing:
    return await hub.list_files(repo, HubAccess(**{"policy": policy, **access}))
