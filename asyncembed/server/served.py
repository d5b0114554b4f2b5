"""Which model serves a request: by the name that it is served under, or the first of the kind that a route needs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from asyncembed.embedders.base import Embedder
from asyncembed.server.refusals import Refusal

EmbedderT = TypeVar("EmbedderT", bound=Embedder, covariant=True)
KindT = TypeVar("KindT", bound=Embedder)


@dataclass(frozen=True, slots=True, eq=False)
class Served(Generic[EmbedderT]):
    """A model, and the name that clients call it by.

    Attributes:
        name: As it stands in requests and answers.
        embedder: Open while the app runs.
        json_name: The name as JSON, quotes included, for answers that are put together from bytes.
        created: When the server began with it, in seconds since 1970.
    """

    name: str
    embedder: EmbedderT
    json_name: bytes
    created: int


class ServedModels:
    """All models of a server, in the order in which they were given."""

    def __init__(self, embedders: Mapping[str, Embedder], created: int) -> None:
        self._models = {
            name: Served(name, embedder, orjson.dumps(name), created) for name, embedder in embedders.items()
        }

    def __iter__(self) -> Iterator[Served[Embedder]]:
        return iter(self._models.values())

    def pick(self, name: str | None, kinds: "type[KindT] | Sequence[type[KindT]]") -> "Served[KindT]":
        """The model of this name; without a name the first one of one of these classes.

        Raises:
            Refusal: There is none, or it is of another class; or none is open.
        """
        if not self._models:
            raise Refusal("unavailable", "the models are not open: the lifespan of this app has not begun")
        wanted = (kinds,) if isinstance(kinds, type) else tuple(kinds)
        if name is None:
            for served in self._models.values():
                if isinstance(served.embedder, wanted):
                    return served  # type: ignore[return-value]
            problem = f"no model is served here that this route takes: one of {_names(wanted)}, given to the server"
            raise Refusal("unfit", f"{problem} when it starts", param="model")
        found = self._models.get(name)
        if found is None:
            raise Refusal(
                "no_model", f"no model {name!r} is served here; there are: {', '.join(self._models)}", param="model"
            )
        if not isinstance(found.embedder, wanted):
            raise Refusal(
                "invalid",
                f"{name!r} is a {type(found.embedder).__name__}; this route needs one of: {_names(wanted)}",
                param="model",
            )
        return found  # type: ignore[return-value]


def _names(kinds: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
