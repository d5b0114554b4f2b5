"""What the caches hold: models of the hub, and what asyncembed has made of them; and how to be rid of it.

Everything here blocks.
"""

import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from asyncembed.catalogue.lookup import find_model, list_models
from asyncembed.catalogue.spec import CacheFolderOrigin, Family, HubOrigin, ModelSpec
from asyncembed.errors import AsyncEmbedError, CacheNotWritableError
from asyncembed.export.graph_cache import delete_graph, kept_graphs, kept_graphs_of
from asyncembed.files import default_cache_dir
from asyncembed.hub.archive import unfinished_archives
from asyncembed.hub.cache import cache_root
from asyncembed.hub.partial import QUIET_SECONDS, allocated_bytes
from asyncembed.runtime.loadable_path import delete_links, linked_snapshots
from asyncembed.runtime.prepared import delete_prepared, kept_prepared, made_of

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

Kind: TypeAlias = Literal[
    "model", "incomplete model", "exported graph", "prepared graph", "links", "unfinished download"
]
"""A model's files; those of one that lacks some; the graph built from its weights; a graph as this
machine computes it; links that make it loadable; the beginning of a file or of an archive."""

MADE_HERE: tuple[Kind, ...] = ("exported graph", "prepared graph", "links", "unfinished download")
"""What can go without anything that is whole being downloaded again."""

_UNFINISHED = "*.incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One thing in a cache.

    Attributes:
        kind: What it is.
        name: The repo that it belongs to; empty where that is not known.
        path: The directory or file.
        size_bytes: What it takes on the disk; 0 of links to what is counted already.
        used_at: When it was last read, as far as the file system keeps that: seconds since 1970.
        revisions: Of a model: the commits that are there, those that a branch or tag leads to as `branch (commit)`.
    """

    kind: Kind
    name: str
    path: Path
    size_bytes: int
    used_at: float
    revisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are kept: what `--cache-dir` or the environment says.

    Attributes:
        hub: The cache that all tools of Hugging Face share.
        own: What asyncembed makes; exported graphs are below it.
    """

    hub: Path
    own: Path

    @classmethod
    def of(cls, cache_dir: Path | None) -> "Places":
        """Those of `cache_dir=`; None: the usual ones."""
        hub = cache_root(cache_dir)
        return cls(hub=hub, own=default_cache_dir().expanduser() if cache_dir is None else hub / "asyncembed")


def look_into(places: Places) -> list[Stored]:
    """All that is there: models first, by name."""
    repos = _repos(places.hub)
    found = [*map(_model, repos), *_incomplete(places.hub, repos), *_folders(places.hub)]
    found += _graphs(places.own, repos)
    found += _prepared(places.own, found)
    found += _links(places.hub)
    found += _unfinished(places.hub)
    return sorted(found, key=lambda each: (get_args(Kind).index(each.kind), each.name.lower(), each.path))


def chosen(stored: Iterable[Stored], names: Collection[str], *, made_here: bool) -> list[Stored]:
    """What of it belongs to models of these names (of the catalogue, or repos), or is `MADE_HERE`.

    What a download may be writing to at this moment is not chosen.
    """
    everything = list(stored)
    folders = {_folder_of(repo) for name in names for repo in repos_of(name)}
    in_use = _in_use(everything)
    return [
        each
        for each in everything
        if (_folder_of(each.name) in folders or (made_here and each.kind in MADE_HERE)) and each.path not in in_use
    ]


def _in_use(stored: Iterable[Stored]) -> set[Path]:
    """Files that somebody may be downloading, as they have been written to of late, and the folders of their repos."""
    now = time.time()
    files = [each for each in stored if each.kind == "unfinished download" and now - each.used_at <= QUIET_SECONDS]
    return {each.path for each in files} | {each.path.parents[1] for each in files}


def _folder_of(repo: str) -> str:
    """A repo as the name of its folder has it, without what all have: huggingface_hub reads "--" as "/"."""
    return repo.replace("/", "--").lower()


def repos_of(name: str) -> set[str]:
    """The repos, and folders of the cache, that the files of a model come from."""
    specs = [spec for family in get_args(Family) if (spec := find_model(name, family)) is not None]
    return {name, *(place for spec in specs for place in _places_of(spec))}


def _places_of(spec: ModelSpec) -> Iterator[str]:
    for source in spec.sources:
        match source:
            case HubOrigin(place) | CacheFolderOrigin(place):
                yield place


def names_of(repo: str) -> list[str]:
    """Under which names the catalogue has models whose files come from this repo, or folder of the cache."""
    found = {spec.name for spec in list_models() if repo.lower() in {each.lower() for each in _places_of(spec)}}
    return sorted(found, key=str.lower)


def delete(what: Iterable[Stored]) -> None:
    """Delete these from the disk.

    Raises:
        CacheNotWritableError: Something of it stays.
    """
    for each in sorted(what, key=lambda one: one.kind == "model"):  # a model takes along what lies in its folder
        try:
            _delete(each)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CacheNotWritableError(f"{each.path} cannot be deleted: {error}", source=str(each.path)) from error


def _delete(each: Stored) -> None:
    if each.kind == "exported graph":
        delete_graph(each.path)
    elif each.kind == "prepared graph":
        delete_prepared(each.path)
    elif each.kind == "links":
        delete_links(each.path)
    elif each.kind == "unfinished download" and not each.path.is_dir():
        each.path.unlink()
    elif each.path.is_symlink():
        raise OSError(f"it is a link to {each.path.resolve()}: delete that, and then the link")
    elif each.revisions:
        _delete_repo(each)
    else:
        shutil.rmtree(each.path)


def _delete_repo(model: Stored) -> None:
    """By huggingface_hub, which knows what other repos share with this one."""
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(model.path.parent)
    repos = frozenset(repo for repo in cache.repos if repo.repo_path == model.path)
    commits = [revision.commit_hash for repo in repos for revision in repo.revisions]
    # It looks for commits in all repos, and a copy of a repo on the hub has those of the original.
    replace(cache, repos=repos).delete_revisions(*commits).execute()
    if model.path.exists():
        shutil.rmtree(model.path)  # what hindered it is raised now


# ---------------------------------------------------------------- the hub's cache


def _repos(root: Path) -> "list[CachedRepoInfo]":
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return [repo for repo in scan_cache_dir(root).repos if repo.repo_type == "model"]
    except (CacheNotFound, ValueError):  # there is none; it is a file
        return []


def _model(repo: "CachedRepoInfo") -> Stored:
    revisions = sorted(
        f"{', '.join(sorted(revision.refs))} ({revision.commit_hash[:7]})"
        if revision.refs
        else revision.commit_hash[:7]
        for revision in repo.revisions
    )
    return Stored(
        kind="model",
        name=repo.repo_id,
        path=repo.repo_path,
        size_bytes=repo.size_on_disk,
        used_at=repo.last_accessed,
        revisions=tuple(revisions),
    )


def _incomplete(root: Path, repos: "Iterable[CachedRepoInfo]") -> Iterator[Stored]:
    whole = {repo.repo_path for repo in repos}
    for folder in root.glob("models--*"):
        if folder not in whole and folder.is_dir():
            yield _measured("incomplete model", _repo_of(folder.name), folder)


def _folders(root: Path) -> Iterator[Stored]:
    """Models that lie in the cache's root itself, as older tools put them there."""
    sources = {source for spec in list_models() for source in spec.sources if isinstance(source, CacheFolderOrigin)}
    for source in sources:
        if (root / source.folder).is_dir():
            yield _measured("model", source.folder, root / source.folder)


def _unfinished(root: Path) -> Iterator[Stored]:
    for path in root.glob(f"models--*/blobs/{_UNFINISHED}"):
        with suppress(OSError):  # it may be whole by now, and have another name
            status = path.lstat()
            yield Stored(
                kind="unfinished download",
                name=_repo_of(path.parents[1].name),
                path=path,
                size_bytes=allocated_bytes(status),
                used_at=status.st_mtime,
            )
    for folder, name in unfinished_archives(root).items():
        yield _measured("unfinished download", name, folder)


def _repo_of(folder: str) -> str:
    return folder.removeprefix("models--").replace("--", "/")


# ---------------------------------------------------------------- what asyncembed has made


def _graphs(own: Path, repos: "Iterable[CachedRepoInfo]") -> Iterator[Stored]:
    if not (graphs := kept_graphs(cache_dir=own)):
        return
    made_from: dict[Path, str] = {}
    for repo in repos:
        for revision in repo.revisions:
            with suppress(AsyncEmbedError):  # it is no model that a graph could be built from
                # Of some models the weights lie in a folder.
                for config in revision.snapshot_path.rglob("config.json"):
                    for graph in kept_graphs_of(config.parent, cache_dir=own):
                        made_from[graph] = repo.repo_id
    for graph in graphs:
        yield _measured("exported graph", made_from.get(graph, ""), graph)


def _prepared(own: Path, others: Iterable[Stored]) -> Iterator[Stored]:
    folders = {each.path: each.name for each in others if each.kind == "exported graph"}
    for folder in kept_prepared(cache_dir=own):
        source = made_of(folder)
        inside = () if source is None else source.parents
        of_repo = (_repo_of(parent.name) for parent in inside if parent.name.startswith("models--"))
        name = next(of_repo, "") or next((folders[parent] for parent in inside if parent in folders), "")
        yield _measured("prepared graph", name, folder)


def _links(root: Path) -> Iterator[Stored]:
    for path in linked_snapshots(root.glob("models--*")):
        # Beside a snapshot, or in a folder that is called like its repo's.
        folder = path.parents[1] if path.parent.name == "onnx_snapshots" else path.parent
        yield _measured("links", _repo_of(folder.name), path)


def _measured(kind: Kind, name: str, folder: Path) -> Stored:
    """A folder with all files in it; one that has another name elsewhere costs nothing here."""
    files = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and not path.match(_UNFINISHED):
                files.append(status)
    return Stored(
        kind=kind,
        name=name,
        path=folder,
        size_bytes=sum(status.st_size for status in files if status.st_nlink == 1),
        used_at=max((max(status.st_atime, status.st_mtime) for status in files), default=0.0),
    )
