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
from typing import TYPE_CHECKING, Any

from asyncembed.catalogue.spec import (
    ArchiveSource,
    CacheFolderSource,
    Family,
    HubSource,
    LocalSource,
    ModelSpec,
    Source,
)
from asyncembed.errors import OptionError, UnknownModelError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_DATA = files("asyncembed.catalogue") / "models.json"
"""Read as a resource: the package may lie in a zip."""

CLASSES: Mapping[Family, str] = {
    "text": "TextEmbedding",
    "sparse": "SparseTextEmbedding",
    "late_interaction": "LateInteractionTextEmbedding",
    "image": "ImageEmbedding",
    "late_interaction_multimodal": "LateInteractionMultimodalEmbedding",
    "cross_encoder": "TextCrossEncoder",
}
"""The public class that serves a family, for messages."""


class Catalogue:
    """Specs by family and name.

    `builtin()` gives the one that the public classes share; a test or a tenant that wants to be alone makes
    its own. Its additions are not locked: make them before the first model is opened, or from one thread.
    """

    def __init__(self, specs: Iterable[ModelSpec] = ()) -> None:
        self._specs: dict[tuple[Family, str], ModelSpec] = {}
        self._aliases: dict[tuple[Family, str], str] = {}
        self._added: set[tuple[Family, str]] = set()
        for spec in specs:
            self._specs[_key(spec.family, spec.name)] = spec

    @staticmethod
    @cache
    def builtin() -> "Catalogue":
        """The models of `models.json`, read once; what is registered here is seen by the whole process."""
        return _read(_DATA)

    def find(self, name: str, family: Family) -> ModelSpec | None:
        """The spec of `name`, an alias included; None where there is none."""
        key = _key(family, name)
        return self._specs.get(_key(family, self._aliases.get(key, name)))

    def lookup(self, name: str, family: Family) -> ModelSpec:
        """The spec of `name`.

        Raises:
            UnknownModelError: There is none; the message has names like it, and other families that know it.
        """
        if (spec := self.find(name, family)) is not None:
            return spec
        message = f"no {family} model is called {name!r}"
        if elsewhere := self.families_of(name):
            message += f"; it is a model of the family {', '.join(elsewhere)}"
            message += f" (class {', '.join(CLASSES[other] for other in elsewhere)})"
        elif near := self.similar(name, family):
            message += f"; did you mean {' or '.join(near)}?"
        raise UnknownModelError(message, model=name)

    def families_of(self, name: str) -> list[Family]:
        """The families that have a model of this name."""
        return sorted({family for family, key in (*self._specs, *self._aliases) if key == name.lower()})

    def similar(self, name: str, family: Family) -> list[str]:
        """Names of a family that `name` may be a misspelling of, the likeliest first."""
        names = [spec.name for spec in self.list_models(family)]
        # Many leave the organisation out: then the rest decides.
        known = {(each if "/" in name else each.rpartition("/")[2]).lower(): each for each in names}
        return [known[match] for match in get_close_matches(name.lower(), list(known), n=3)]

    def list_models(self, family: Family | None = None) -> list[ModelSpec]:
        """All specs, or those of one family, in the order of the catalogue, added ones last."""
        return [spec for spec in self._specs.values() if family is None or spec.family == family]

    def register(self, spec: ModelSpec) -> None:
        """Add a model.

        Raises:
            OptionError: The family has a model of this name, or the spec says nowhere to get its files from.
        """
        if self.find(spec.name, spec.family) is not None:
            raise OptionError(f"the family {spec.family} already has a model called {spec.name!r}")
        if not spec.name:
            raise OptionError("a model needs a name")
        if not spec.sources:
            raise OptionError(f"the model {spec.name!r} needs a source: a hub repo, an archive, or a directory")
        key = _key(spec.family, spec.name)
        self._specs[key] = spec
        self._added.add(key)

    def unregister(self, name: str, family: Family) -> None:
        """Remove a model that was registered.

        Raises:
            UnknownModelError: No such model was registered; what is built in stays.
        """
        key = _key(family, name)
        if key not in self._added:
            raise UnknownModelError(f"no {family} model called {name!r} was registered", model=name)
        self._added.remove(key)
        del self._specs[key]

    def add_alias(self, alias: str, spec: ModelSpec) -> None:
        """Let `alias` mean `spec`, too."""
        self._aliases[_key(spec.family, alias)] = spec.name


def _key(family: Family, name: str) -> tuple[Family, str]:
    return family, name.lower()


def _read(data: "Traversable") -> Catalogue:
    records = json.loads(data.read_bytes())
    aliases = [record.pop("aliases", ()) for record in records]
    specs = [_spec(record) for record in records]
    catalogue = Catalogue(specs)
    for spec, names in zip(specs, aliases, strict=True):
        for name in names:
            catalogue.add_alias(name, spec)
    return catalogue


def _spec(record: dict[str, Any]) -> ModelSpec:
    """A record of the data file: the fields of `ModelSpec`, except that `hub` and `folder` stand for its sources."""
    sources: tuple[Source, ...] = (HubSource(record.pop("hub")),)
    if "folder" in record:
        sources += (CacheFolderSource(record.pop("folder")),)
    files = tuple(record.pop("additional_files", ()))
    return ModelSpec(sources=sources, additional_files=files, **record)


def describe(spec: ModelSpec) -> dict[str, object]:
    """A spec as `list_supported_models` gives it."""
    hub = next((source.repo for source in spec.sources if isinstance(source, HubSource)), None)
    url = next((source.url for source in spec.sources if isinstance(source, ArchiveSource)), None)
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


def parse_sources(sources: object, model: str) -> tuple[Source, ...]:
    """Sources as a program may write them: repo names, URLs, sources, objects with `hf` and `url`, or several of these.

    Raises:
        OptionError: It is none of these.
    """
    if isinstance(sources, (HubSource, ArchiveSource, LocalSource, CacheFolderSource)):
        return (sources,)
    if isinstance(sources, os.PathLike):
        return (LocalSource(Path(sources)),)
    if isinstance(sources, str):
        if sources.startswith(("http://", "https://")):
            # As fastembed lays such archives out: one folder, called like the model without its organisation.
            return (ArchiveSource(sources, model.rsplit("/", 1)[-1]),)
        return (HubSource(sources),)
    if hasattr(sources, "hf") or hasattr(sources, "url"):
        given = [value for value in (getattr(sources, "hf", None), getattr(sources, "url", None)) if value]
        return tuple(source for value in given for source in parse_sources(value, model))
    if isinstance(sources, Iterable):
        return tuple(source for entry in sources for source in parse_sources(entry, model))
    raise OptionError(f"{sources!r} is no source: give a hub repo, a URL, or a directory")
