"""A user whom passwd does not know, as in many containers."""

import pwd

import pytest

from asyncembed.errors import CacheNotWritableError
from asyncembed.hub.cache import cache_root


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def getpwuid(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with pytest.raises(CacheNotWritableError, match="HF_HOME, or give cache_dir="):
        cache_root("~/models")
    assert cache_root("/somewhere").is_absolute()
