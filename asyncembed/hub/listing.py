"""What a repo holds: from a name and a revision to a commit, and from a commit to its files."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import quote

from asyncembed.errors import OptionError, RepoFileNotFoundError, UnexpectedAnswerError
from asyncembed.repo_files import is_commit, is_safe_path, shown

if TYPE_CHECKING:
    from asyncembed.hub.client import HubClient

DEFAULT_REVISION = "main"
MAX_FILES = 250_000
"""Files of a repo; the largest repos of models have tens of thousands."""

MAX_FILE_BYTES = 2**50

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REPO_PART = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a commit, as the hub lists it.

    Attributes:
        path: Path in the repo, with `/`.
        size_bytes: Size of the content, also for a large file.
        blob_id: sha1 of what git stores; for a large file (LFS) that is a pointer text, not the content.
        lfs_sha256: sha256 of the content of a large file; None for the others.
        xet_hash: Kept for other tools that read the listing; never used here.
    """

    path: str
    size_bytes: int
    blob_id: str
    lfs_sha256: str | None = None
    xet_hash: str | None = None

    @property
    def is_storable(self) -> bool:
        """Whether its path stays in the repo's folder, and its hash is one: both become names on this disk."""
        return is_safe_path(self.path) and _HASH.fullmatch(self.etag) is not None

    @property
    def etag(self) -> str:
        """The name of its blob in the cache."""
        return self.lfs_sha256 or self.blob_id


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of one commit of a repo. `revision` is what was asked for: a branch, a tag or a commit."""

    repo: str
    revision: str
    commit: str
    files: tuple[RepoFile, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files' paths in the repo."""
        return tuple(file.path for file in self.files)

    def select(self, wanted: "Wanted") -> tuple[RepoFile, ...]:
        """The files that `wanted` names.

        Raises:
            RepoFileNotFoundError: A required file is not in the repo.
            UnexpectedAnswerError: A file's name leads out of its directory, or is there twice, or its hash is none.
        """
        missing = sorted(set(wanted.required) - set(self.paths))
        if missing:
            raise RepoFileNotFoundError(
                f"{self.repo} at revision {self.revision!r} has no {enumerate_names(missing)}; "
                f"it has {enumerate_names(sorted(self.paths))}",
                source=self.repo,
                path=missing[0],
            )
        chosen = tuple(file for file in self.files if wanted.matches(file.path))
        seen: set[str] = set()
        for file in chosen:
            if not file.is_storable or file.path in seen:
                raise UnexpectedAnswerError(
                    f"the listing of {self.repo} holds a file that cannot be stored safely: {shown(file.path)}",
                    source=self.repo,
                    path=file.path,
                )
            seen.add(file.path)
        return chosen


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files of a source a caller wants.

    `patterns` are globs over whole paths, as huggingface_hub's users know them: `*` also matches `/`, and a
    pattern that ends in `/` means everything below it. `required` are exact paths that must be there.
    """

    patterns: tuple[str, ...]
    required: tuple[str, ...] = ()

    def matches(self, path: str) -> bool:
        """Whether the file at `path` is wanted."""
        return path in self.required or any(
            fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)
            for pattern in (pattern.replace("\\", "/") for pattern in self.patterns)
        )


def check_repo_id(repo: object) -> None:
    """Raise OptionError unless `repo` can be the name of a repo."""
    parts = repo.split("/") if isinstance(repo, str) and not repo.endswith(".git") else []
    if not 1 <= len(parts) <= 2 or any(
        not _REPO_PART.fullmatch(part) or "--" in part or ".." in part for part in parts
    ):
        raise OptionError(
            f"{shown(repo)} is no repo id: it has the form 'organisation/name', of letters, digits, '-', '_' and '.'"
        )


def check_revision(revision: object) -> None:
    """Raise OptionError unless `revision` can be the name of a branch, a tag or a commit."""
    if not isinstance(revision, str) or not is_safe_path(revision):
        raise OptionError(f"revision= is the name of a branch, a tag or a commit; got {shown(revision)}")


def enumerate_names(names: Sequence[str], limit: int = 12) -> str:
    """Some names of files, for a message."""
    listed = ", ".join(name if name.isprintable() and len(name) < 200 else shown(name) for name in names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed or "no files"


async def resolve_commit(client: "HubClient", repo: str, revision: str) -> str:
    """Ask the hub which commit `revision` is now."""
    if is_commit(revision):
        return revision
    info, _ = await client.get_json(
        f"/api/models/{repo}/revision/{quote(revision, safe='')}", repo=repo, revision=revision
    )
    commit = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(commit, str) or not is_commit(commit):
        raise UnexpectedAnswerError(
            f"{client.endpoint} did not say which commit {revision!r} of {repo} is", source=repo
        )
    return commit


async def list_tree(client: "HubClient", repo: str, revision: str, commit: str) -> Listing:
    """Ask the hub for all files of a commit, page by page."""
    files: list[RepoFile] = []
    address: str | None = f"/api/models/{repo}/tree/{commit}?recursive=true&expand=false"
    for _ in range(client.policy.page_limit):
        if address is None:
            return Listing(repo, revision, commit, tuple(files))
        page, address = await client.get_json(address, repo=repo, revision=commit)
        files.extend(_parse_page(page, repo))
        if len(files) > MAX_FILES:
            raise UnexpectedAnswerError(f"the listing of {repo} names more than {MAX_FILES:,} files", source=repo)
    raise UnexpectedAnswerError(f"the listing of {repo} does not end", source=repo)


def _parse_page(page: object, repo: str) -> Iterable[RepoFile]:
    try:
        if not isinstance(page, list):
            raise TypeError("not a list")
        return [
            parse_file(entry["path"], entry["size"], entry["oid"], (entry.get("lfs") or {}).get("oid"), entry)
            for entry in page
            if entry["type"] == "file"
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnexpectedAnswerError(f"the listing of {repo} is not in the hub's form", source=repo) from error


def parse_file(
    path: object, size: object, blob_id: object, lfs_sha256: object, entry: Mapping[str, object]
) -> RepoFile:
    """An entry of a listing, the hub's or one in a cache, of which nothing is believed.

    Raises:
        TypeError, ValueError: It is none.
    """
    xet_hash = entry.get("xetHash", entry.get("xet_hash"))
    if not isinstance(path, str) or not isinstance(blob_id, str) or type(size) is not int:
        raise TypeError("a path or a hash that is no text, or a size that is no number")
    if not isinstance(lfs_sha256, str | None) or not isinstance(xet_hash, str | None):
        raise TypeError("a hash that is no text")
    if not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError("a size that no file has")
    return RepoFile(path, size, blob_id, lfs_sha256, xet_hash)
