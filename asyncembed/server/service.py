"""What handlers stand on: the models, and the limits of a request."""

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest
from time import monotonic
from typing import TYPE_CHECKING, Any

from asyncembed.embedders.base import Embedder, is_loaded, load
from asyncembed.server.foreign_pages import is_of_foreign_page
from asyncembed.server.meter import Meter
from asyncembed.server.model_facts import ModelFacts
from asyncembed.server.refusals import Refusal
from asyncembed.server.request_limits import Limits
from asyncembed.server.served import KindT, Served, ServedModels

if TYPE_CHECKING:
    from asyncembed.engine.supervisor import Supervisor

MOST_BYTES_OF_A_CHARACTER = 4

MOST_VALUES = 500_000
"""Of a body, besides its inputs and tokens: decoding so many takes some tenths of a second."""

SPECIAL_TOKENS = 16
"""At the ends of a text, and ahead of it: a generous guess."""


_JSON_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def _has_more_values(body: bytes, most: int) -> bool:
    """Whether there are more commas in a JSON document than `most`, besides those of texts."""
    if body.count(b",") <= most:
        return False
    count = end = 0
    for text in _JSON_TEXT.finditer(body):
        count += body.count(b",", end, text.start())
        if count > most:
            return True
        end = text.end()
    return count + body.count(b",", end) > most


class Service:
    """One server: what all of its routes share.

    Attributes:
        models: What is served.
        limits: What one request may ask for.
        bulk: Inputs of bulk work that are computed or wait, by the engine that does it, and by whether their request
            has some that have yet to be fetched.
        meter: What came of its requests so far.
        began: When it was made, by `time.monotonic`.
        is_ready: Whether the models are open.
        is_alone: Whether `asyncembed serve` runs it, so that nobody's middleware comes between it and its clients.
        failure: Why they could not be opened.
    """

    def __init__(
        self, models: ServedModels, limits: Limits, api_keys: Sequence[str], *, foreign_pages: bool = False
    ) -> None:
        self.models = models
        self.limits = limits
        self.meter: Meter = Meter()
        self.began: float = monotonic()
        self.is_ready = False
        self.is_alone = False
        self.failure: Exception | None = None
        self.bulk: Counter[tuple[Supervisor, bool]] = Counter()
        self._facts: dict[str, ModelFacts] = {}
        self._foreign_pages = foreign_pages
        # Of one length whatever the keys are, so that comparing tells nothing of them.
        self._keys = [sha256(key.encode()).digest() for key in api_keys]

    @property
    def has_keys(self) -> bool:
        """Whether clients must give a key."""
        return bool(self._keys)

    def check_asker(self, scope: Any) -> None:
        """Raise `Refusal` unless a request (an ASGI scope) is of somebody who may ask."""
        if self._keys:
            self._check_key(scope["headers"])
        elif not self._foreign_pages and is_of_foreign_page(scope):
            raise Refusal(
                "foreign",
                "this request is of a web page of another site, which a server without an API key does not answer: "
                "give it one (ASYNCEMBED_API_KEY, create_app(api_key=)), ask it by the name localhost, or send "
                "application/json; create_app(foreign_pages=True) answers all",
            )

    def _check_key(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raise `Refusal` unless the request has one of the keys as a bearer token."""
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = sha256(key.strip()).digest()
        is_known = False
        for known in self._keys:
            is_known |= compare_digest(digest, known)
        if scheme.lower() != b"bearer" or not is_known:
            raise Refusal(
                "no_key",
                "this server asks for its API key: Authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )

    def check_count(self, count: int, *, param: str) -> None:
        """Raise `Refusal` for a request without inputs, or with too many of them."""
        if count == 0:
            raise Refusal("empty", f"{param} is empty: there is nothing to compute", param=param)
        if count > self.limits.max_inputs:
            raise Refusal(
                "too_many",
                f"{param} has {count} inputs; one request may have {self.limits.max_inputs}: send several",
                param=param,
            )

    def check_values(self, body: bytes) -> None:
        """Raise `Refusal` for a body with so many values that decoding it would hold everybody up, and take gigabytes.

        It is as large as it may be, and nothing but `[],[],[]`: what is within the other limits is far from it.
        """
        most = MOST_VALUES + 2 * self.limits.max_tokens + 8 * self.limits.max_inputs
        if len(body) > 2 * most and _has_more_values(body, most):
            raise Refusal("too_many", f"the body has more than {most} values")

    async def pick(self, name: str | None, kinds: type[KindT] | Sequence[type[KindT]]) -> Served[KindT]:
        """The model that serves a request, loaded if that was left to the first one.

        Raises:
            Refusal: There is none, or it is of another class.
            AsyncEmbedError: It cannot be loaded.
        """
        model = self.models.pick(name, kinds)
        if not is_loaded(model.embedder):
            await load(model.embedder)
        return model

    def facts(self, model: Served[Embedder]) -> ModelFacts:
        """What the files of a model say of it."""
        found = self._facts.get(model.name)
        if found is None:
            found = self._facts[model.name] = ModelFacts(model.embedder)
        return found

    async def check_tokens(
        self, model: Served[Embedder], inputs: Sequence[str] | Sequence[tuple[str, str]], *, param: str
    ) -> None:
        """Count the tokens where there may be too many: a text has at most one for each byte, besides some.

        Raises:
            Refusal: The texts, or pairs of texts, have more than a request may have.
        """
        limit = self.limits.max_tokens
        longest = model.embedder.max_length
        if longest is not None and longest * len(inputs) <= limit:
            return
        characters = sum(len(one) if isinstance(one, str) else sum(map(len, one)) for one in inputs)
        if characters * MOST_BYTES_OF_A_CHARACTER + SPECIAL_TOKENS * len(inputs) <= limit:
            return
        count = getattr(model.embedder, "token_count", None)
        tokens = await count(list(inputs)) if count is not None else 0
        self.check_token_count(tokens, param=param)

    def check_token_count(self, tokens: int, *, param: str) -> None:
        """Raise `Refusal` for more tokens than a request may have."""
        limit = self.limits.max_tokens
        if tokens > limit:
            message = f"{param} has {tokens} tokens; one request may have {limit}: send several"
            raise Refusal("too_many", message, param=param)
