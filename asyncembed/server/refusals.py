"""What goes wrong with a request, in words that all dialects share, and what it means in HTTP."""

from collections.abc import Mapping
from logging import Logger, getLogger
from math import ceil
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

from asyncembed.errors import AsyncEmbedError, ClientGoneError, InputError, OptionError, OverloadedError, StateError

logger: Logger = getLogger("asyncembed.server")

Kind: TypeAlias = Literal[
    "malformed", "invalid", "empty", "too_many", "too_large", "no_key", "foreign", "no_model", "unfit", "no_route",
    "no_method", "overloaded", "unavailable", "gone", "failed",
]  # fmt: skip

STATUSES: Final[Mapping[Kind, int]] = {
    "malformed": 400,
    "invalid": 400,
    "empty": 400,
    "too_many": 400,
    "too_large": 413,
    "no_key": 401,
    "foreign": 403,
    "no_model": 404,
    "unfit": 404,
    "no_route": 404,
    "no_method": 405,
    "overloaded": 429,
    "unavailable": 503,
    "gone": 499,
    "failed": 500,
}
"""What each is unless a dialect says otherwise.

    malformed    the body is no JSON, or not of the form that the route takes
    invalid      an input, or a value, that cannot be served
    empty        no input at all
    too_many     more inputs or tokens than one request may have
    too_large    more bytes than one request may have
    no_key       none, or a wrong one
    foreign      it comes from a web page of another site, in the browser of somebody who can reach the server
    no_model     none of this name is served
    unfit        none is served that can do what the route is for
    no_route, no_method     nothing is there, or not for this method
    overloaded   too many wait already; `retry_after_seconds` says when to come back
    unavailable  the server is starting or ending
    gone         the client has left: read by logs only
    failed       everything else, which is not the client's to mend
"""

RETRY_AFTER_SECONDS = 1
"""What an overloaded server asks clients to wait for at least."""

MOST_CHARACTERS = 2000
"""Of what a client is told; the middle of more is left out."""

FAILED = "the server failed at this request; its log says why"


class Refusal(Exception):  # noqa: N818 (no accident: it is what the server answers)
    """A request that is not served: raised by handlers, answered in the form of the route's dialect.

    Attributes:
        kind: What is the matter.
        message: A sentence for the client.
        param: The field of the body that is concerned, where it is one.
        headers: To be sent with it.
    """

    def __init__(
        self, kind: Kind, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        if len(message) > MOST_CHARACTERS:  # a value of the body is in it, which is as long as the client likes
            message = f"{message[: MOST_CHARACTERS // 2]} ... {message[-MOST_CHARACTERS // 2 :]}"
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.param = param
        self.headers: Mapping[str, str] = headers or {}


def refusal_of(error: Exception) -> Refusal:
    """What the client is told of whatever a handler has raised; what is nobody's fault but ours is logged."""
    match error:
        case Refusal():
            return error
        case msgspec.DecodeError():
            return Refusal("malformed", f"the body is no JSON: {error}")
        case InputError():
            return Refusal("invalid", str(error), param="input")
        case OptionError():
            return Refusal("invalid", str(error))
        case OverloadedError():
            seconds = max(RETRY_AFTER_SECONDS, ceil(error.retry_after_seconds or 0))
            message = "too many requests are waiting: try again later"
            return Refusal("overloaded", message, headers={"retry-after": str(seconds)})
        case ClientGoneError():
            return Refusal("gone", str(error))
        case StateError():
            return Refusal("unavailable", "the server is ending")
    logger.error("a request failed", exc_info=error)
    return Refusal("failed", _without_internals(error))


def malformed(form: Any, error: msgspec.ValidationError) -> Refusal:
    """What the client is told of a body that is not of that form, a Struct: with the words that a field may have."""
    message = str(error)
    field = _field_of(message)
    if message.startswith("Invalid enum value") and isinstance(form, type):
        words = _words(get_type_hints(form).get(field or ""))
        message += f": it may be {', '.join(words)}" if words else ""
    return Refusal("malformed", message, param=field)


def _words(hint: Any) -> list[str]:
    """Those of all literals in a type."""
    if get_origin(hint) is Literal:
        return [repr(word) for word in get_args(hint)]
    return [word for one in get_args(hint) for word in _words(one)]


def _field_of(message: str) -> str | None:
    """The field that a message of msgspec names: "... - at `$.input[0]`", "... missing required field `input`"."""
    for opening in ("at `$.", "field `"):
        _, found, rest = message.partition(opening)
        if found:
            return rest.partition("`")[0].partition("[")[0].partition(".")[0]
    return None


def _without_internals(error: Exception) -> str:
    """Of our own errors the sentence, which is about an input or a worker; of others none, as it may hold anything."""
    return f"{type(error).__name__}: the model failed at this request" if isinstance(error, AsyncEmbedError) else FAILED
