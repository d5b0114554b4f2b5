"""The OpenAPI document of the app: made of the same Structs that decode the bodies, so that it says what is true."""

from collections.abc import Iterable
from typing import Any

import msgspec

from asyncembed.server.endpoint import Dialect, Route

_REF = "#/components/schemas/{name}"
_SEPARATORS = str.maketrans("/{}", "   ")


def describe_routes(document: dict[str, Any], dialects: Iterable[Dialect]) -> dict[str, Any]:
    """The document with the routes of all dialects, besides what it has already."""
    pairs = [(dialect, route) for dialect in dialects for route in dialect.routes]
    types = [kind for _, route in pairs for kind in (route.body, route.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    found = iter(schemas)
    paths: dict[str, Any] = document.setdefault("paths", {})
    for dialect, route in pairs:
        body = None if route.body is None else next(found)
        answer = None if route.answer is None else next(found)
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(dialect, route, body, answer)
    known = document.setdefault("components", {})
    known.setdefault("schemas", {}).update(components)
    known.setdefault("securitySchemes", {})["key"] = {"type": "http", "scheme": "bearer"}
    return document


def _operation(dialect: Dialect, route: Route, body: object, answer: object) -> dict[str, Any]:
    name = f"{route.method} {route.path}".lower().translate(_SEPARATORS).split()
    operation: dict[str, Any] = {
        "tags": [dialect.name],
        "summary": route.summary,
        "operationId": "_".join(name),
        "responses": {
            "200": _answer("It is served.", {} if answer is None else answer, route.media_type),
            "default": _answer("It is refused, or it failed.", {}),
        },
    }
    if route.path.endswith("{id}"):
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if route.needs_key:
        operation["security"] = [{"key": []}, {}]
    return operation


def _answer(description: str, schema: object, media_type: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}
