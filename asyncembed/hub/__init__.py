"""From where a model's files come from to a directory with them: the hub, archives, what is on this disk already."""

from asyncembed.hub.access import DownloadPolicy, HubAccess
from asyncembed.hub.api import download_files, list_files
from asyncembed.hub.listing import Listing, RepoFile
from asyncembed.hub.progress import (
    BytesReceived,
    DownloadFinished,
    DownloadStarted,
    FileFinished,
    Progress,
    ProgressEvent,
)

__all__ = [
    "BytesReceived",
    "DownloadFinished",
    "DownloadPolicy",
    "DownloadStarted",
    "FileFinished",
    "HubAccess",
    "Listing",
    "Progress",
    "ProgressEvent",
    "RepoFile",
    "download_files",
    "list_files",
]
