"""The OpenAPI 3.1 document, generated from the routes that the areas declared."""

from importlib.metadata import version
from typing import Any

import msgspec

from node.control.api import Api, ErrorReply, Raw, Route

_REF = "#/components/schemas/{name}"


def document(api: Api) -> bytes:
    """Return the document as JSON."""
    types = {_key(t): t for route in api.routes for t in (route.body, route.reply) if _is_json(t)}
    types[_key(ErrorReply)] = ErrorReply
    schemas, components = msgspec.json.schema_components(
        types.values(), schema_hook=_schema_of_anything, ref_template=_REF
    )
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(api.routes, key=lambda r: (r.path, r.method)):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Shoal control API", "version": version("shoal")},
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": schema_of[_key(ErrorReply)]}}
    content: dict[str, Any] = {}
    if route.events:
        content["text/event-stream"] = {"x-event": schema_of.get(_key(route.reply), {})}
    elif _is_json(route.reply):
        content["application/json"] = {"schema": schema_of[_key(route.reply)]}
    done: dict[str, Any] = {"description": "Done."}
    if content:
        done["content"] = content
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200" if content or route.reply is not None else "204": done,
            "default": {"description": "It failed; the error says why.", "content": error},
        },
    }
    if route.body is not None:
        schema = schema_of[_key(route.body)]
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    names = [s[1:-1] for s in route.segments if s.startswith("{")]
    if names:
        text = {"type": "string"}
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": text} for name in names
        ]
    return operation


def _schema_of_anything(type_: type) -> dict[str, Any]:
    """A field of type `object` may hold any JSON."""
    if type_ is object:
        return {"description": "any JSON value"}  # msgspec takes an empty one for none at all
    raise NotImplementedError(type_)


def _is_json(type_: object) -> bool:
    return type_ is not None and type_ is not Raw


def _key(type_: object) -> str:
    return repr(type_)
