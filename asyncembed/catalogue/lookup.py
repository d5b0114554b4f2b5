"""From a name to a spec: the catalogue in `models.json`, and the models that a program adds.

A name belongs to a family: the same name may mean different files for texts and for images. Letter case never
counts.
"""

import json
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from asyncembed.catalogue.spec import (
    ArchiveOrigin,
    CacheFolderOrigin,
    Family,
    HubOrigin,
    LocalOrigin,
    ModelSpec,
    Origin,
)
from asyncembed.errors import OptionError, UnknownModelError

_DATA = files("asyncembed.catalogue") / "models.json"
"""Read as a resource: the package may lie in a zip."""

CLASSES: Mapping[Family, str] = {
    "text": "TextEmbedding",
    "sparse": "SparseTextEmbedding",
    "late_interaction": "LateInteractionTextEmbedding",
    "hybrid": "HybridTextEmbedding",
    "image": "ImageEmbedding",
    "late_interaction_multimodal": "LateInteractionMultimodalEmbedding",
    "cross_encoder": "TextCrossEncoder",
}
"""The public class that serves a family, for messages."""


def find_model(name: str, family: Family) -> ModelSpec | None:
    """The spec of `name`, an alias included; None where there is none."""
    return _catalogue().get(_key(family, name))


def require_model(name: str, family: Family) -> ModelSpec:
    """The spec of `name`.

    Raises:
        UnknownModelError: There is none; the message has names like it, and other families that know it.
    """
    if (spec := find_model(name, family)) is not None:
        return spec
    message = f"no {family} model is called {name!r}"
    if elsewhere := families_of(name):
        message += f"; it is a model of the family {', '.join(elsewhere)}"
        message += f" (class {', '.join(CLASSES[other] for other in elsewhere)})"
    elif near := similar_names(name, family):
        message += f"; did you mean {' or '.join(near)}?"
    raise UnknownModelError(message, model=name)


def families_of(name: str) -> list[Family]:
    """The families that have a model of this name, in the order in which they are listed."""
    return [family for family in get_args(Family) if _key(family, name) in _catalogue()]


def is_only_catalogued(name: str) -> bool:
    """Whether no repo is called so of which other classes than those that know the name could read what they need."""
    specs = [_catalogue()[_key(family, name)] for family in families_of(name)]
    # A hybrid model is in its own repo, which says what each part of it is.
    return any(not spec.reads_repo and spec.family != "hybrid" for spec in specs)


def similar_names(name: str, family: Family) -> list[str]:
    """Names of a family that `name` may be a misspelling of, the likeliest first."""
    names = [spec.name for spec in list_models(family)]
    # Many leave the organisation out: then the rest decides.
    known = {(each if "/" in name else each.rpartition("/")[2]).lower(): each for each in names}
    return [known[match] for match in get_close_matches(name.lower(), list(known), n=3)]


def list_models(family: Family | None = None) -> list[ModelSpec]:
    """All specs, or those of one family, in the order of the catalogue, registered ones last."""
    specs = _catalogue().items()
    return [spec for (kind, name), spec in specs if family in (None, kind) and name == spec.name.lower()]


def register(spec: ModelSpec) -> None:
    """Add a model, for the whole process. Nothing is locked: add before the first model is opened, or from one thread.

    Raises:
        OptionError: The family has another model of this name, or the spec says nowhere to get its files from.
    """
    known = find_model(spec.name, spec.family)
    if known == spec:  # a cell that is run again
        return
    if known is not None:
        raise OptionError(f"the family {spec.family} already has a model called {spec.name!r}")
    if not spec.name:
        raise OptionError("a model needs a name")
    if not spec.sources:
        raise OptionError(f"the model {spec.name!r} needs a source: a hub repo, an archive, or a directory")
    _catalogue()[_key(spec.family, spec.name)] = spec


@cache
def _catalogue() -> dict[tuple[Family, str], ModelSpec]:
    """Every spec under its name and under its aliases: those of `models.json`, read once, and what was registered."""
    specs: dict[tuple[Family, str], ModelSpec] = {}
    for record in json.loads(_DATA.read_bytes()):
        aliases = record.pop("aliases", ())
        spec = _spec(record)
        for name in (spec.name, *aliases):
            specs[_key(spec.family, name)] = spec
    return specs


def _key(family: Family, name: str) -> tuple[Family, str]:
    return family, name.lower()


def _spec(record: dict[str, Any]) -> ModelSpec:
    """A record of the data file: the fields of `ModelSpec`, except that `hub` and `folder` stand for its sources."""
    sources: tuple[Origin, ...] = (HubOrigin(record.pop("hub")),)
    if "folder" in record:
        sources += (CacheFolderOrigin(record.pop("folder")),)
    files, languages = (tuple(record.pop(name, ())) for name in ("additional_files", "languages"))
    return ModelSpec(sources=sources, additional_files=files, languages=languages, **record)


def describe(spec: ModelSpec) -> dict[str, object]:
    """A spec as `list_supported_models` gives it."""
    hub = next((source.repo for source in spec.sources if isinstance(source, HubOrigin)), None)
    url = next((source.url for source in spec.sources if isinstance(source, ArchiveOrigin)), None)
    record: dict[str, object] = {
        "model": spec.name,
        "dim": spec.dim,
        "description": spec.description,
        "license": spec.license,
        "size_in_GB": spec.size_in_gb,
        "sources": {"hf": hub, "url": url},
        "model_file": spec.model_file,
        "additional_files": list(spec.additional_files),
        "prompts": dict(spec.prompts),
        "languages": list(spec.languages),
        "stated_limit": spec.stated_limit,
    }
    if spec.family in ("text", "image"):
        # Of a multi-task model: name and number of each.
        record["tasks"] = dict(tasks) if isinstance(tasks := spec.settings.get("tasks"), Mapping) else {}
    if spec.family == "sparse":
        # Whether the database is to weigh with the IDF, and how many indices there are.
        record |= {
            "requires_idf": spec.settings.get("requires_idf"),
            "vocab_size": spec.settings.get("vocabulary_size"),
        }
    return record


def parse_origins(sources: object, model: str) -> tuple[Origin, ...]:
    """Origins as a program may write them: repo names, URLs, sources, objects with `hf` and `url`, or several of these.

    Raises:
        OptionError: It is none of these.
    """
    if isinstance(sources, (HubOrigin, ArchiveOrigin, LocalOrigin, CacheFolderOrigin)):
        return (sources,)
    if isinstance(sources, os.PathLike):
        return (LocalOrigin(Path(sources)),)
    if isinstance(sources, str):
        if sources.startswith(("http://", "https://")):
            # As fastembed lays such archives out: one folder, called like the model without its organisation.
            return (ArchiveOrigin(sources, model.rsplit("/", 1)[-1]),)
        return (HubOrigin(sources),)
    if hasattr(sources, "hf") or hasattr(sources, "url"):
        given = [value for value in (getattr(sources, "hf", None), getattr(sources, "url", None)) if value]
        return tuple(source for value in given for source in parse_origins(value, model))
    if isinstance(sources, Iterable):
        return tuple(source for entry in sources for source in parse_origins(entry, model))
    raise OptionError(f"{sources!r} is no source: give a hub repo, a URL, or a directory")
