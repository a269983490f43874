"""The OpenAPI 3.1 document, made from the route table and the models that validate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from engine.api.errors import CODES
from engine.api.listing import DEFAULT_LIMIT, MAX_FILTER, MAX_LIMIT, MAX_PAGE, Listing
from engine.api.models import Error
from engine.api.permissions import PERMISSIONS, Permission, Scope
from engine.api.routes import Auth, Route

_PLACE = re.compile(r"\{(\w+)\}")
_SECURITY: Mapping[Auth, list[dict[str, list[str]]]] = {
    Auth.NONE: [],
    Auth.BEARER: [{"bearer": []}],
    Auth.COOKIE: [{"refresh": []}],
    Auth.TICKET: [{"bearer": []}, {"ticket": []}],
}
_TAGS = {
    "auth": "Logging in. The access token goes into the Authorization header; keep it in memory.",
    "calls": "Live calls. Agents see and hang up their own.",
    "trunks": "Ways to the outside now: registrations, health, calls and limits.",
    "queues": "Queues now. Agents see those that they serve.",
    "agents": "Agents now. Agents see and change themselves.",
    "interactions": "What has finished.",
    "events": "What happens, as it happens.",
    "sip": "What phones and trunks said lately, and whom nobody listens to.",
    "health": "For monitoring.",
    "about": "This description.",
}

Schema = dict[str, Any]


def document(routes: Sequence[Route], *, version: str) -> Schema:
    """Describe every route."""
    models: list[type[BaseModel]] = [Error]
    models += [model for route in routes for model in (route.body, route.answer) if model is not None]
    names, definitions = models_json_schema(
        [(model, "serialization") for model in dict.fromkeys(models)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Schema] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, {model: names[model, "serialization"] for model in models}
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Murima API",
            "version": version,
            "description": "See and steer calls, queues and agents.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "refresh": {"type": "apiKey", "in": "cookie", "name": "murima_refresh"},
                "ticket": {"type": "apiKey", "in": "query", "name": "ticket"},
            },
        },
    }


def _operation(route: Route, schemas: Mapping[type[BaseModel], Schema]) -> Schema:
    operation: Schema = {
        "operationId": operation_id(route),
        "summary": route.summary,
        "tags": [route.tag],
        "security": _SECURITY[route.auth],
        "responses": _responses(route, schemas),
    }
    if route.permission is not None:
        operation["description"] = _who(route.permission)
    parameters = [
        {"name": name, "in": "path", "required": True, "description": "Which one.", "schema": {"type": "string"}}
        for name in _PLACE.findall(route.path)
    ]
    if route.listing is not None:
        parameters += _listing(route.listing)
    parameters += [
        {"name": extra.name, "in": "query", "description": extra.description, "schema": {"type": "string"}}
        for extra in route.parameters
        if not (route.auth is Auth.TICKET and extra.name == "ticket")  # named by its security scheme
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = schemas[route.body]
        required = any(field.is_required() for field in route.body.model_fields.values())
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return operation


def operation_id(route: Route) -> str:
    """A stable name for client generators: the method and the path's words."""
    words = re.sub(r"[^a-z0-9]+", "_", route.path.removeprefix("/api/v1").lower()).strip("_")
    return f"{route.method.lower()}_{words}"


def _who(permission: Permission) -> str:
    reach = {role: row.get(permission, Scope.NONE) for role, row in PERMISSIONS.items()}
    everyone = ", ".join(role for role, scope in reach.items() if scope is Scope.ALL)
    own = ", ".join(role for role, scope in reach.items() if scope is Scope.OWN)
    return f"Permission {permission}: {everyone}" + (f"; only their own: {own}." if own else ".")


def _responses(route: Route, schemas: Mapping[type[BaseModel], Schema]) -> Schema:
    good: Schema = {"description": "Done."}
    if route.status == 101:
        good = {"description": 'The stream is open. Its messages: Event, or {"dropped": n} where n were missed.'}
    elif route.answer is not None:
        good["content"] = {"application/json": {"schema": schemas[route.answer]}}
    elif route.status == 200:
        good["content"] = {route.media_type: {"schema": {"type": "string"}}}
    codes = {*route.errors, 500}
    if route.auth in (Auth.BEARER, Auth.TICKET):
        codes.add(401)
    if route.permission is not None:
        codes.add(403)
    if route.listing is not None:
        codes.add(400)
    if route.body is not None:
        codes |= {400, 413, 415, 422}
    failed = {"application/json": {"schema": schemas[Error]}}
    return {
        str(route.status): good,
        **{str(code): {"description": CODES[code].replace("_", " "), "content": failed} for code in sorted(codes)},
    }


def _listing(listing: Listing) -> list[Schema]:
    sort: Schema = {"type": "string", "default": listing.sorts[0]}
    keys = "by the store's fields"
    if listing.filters is not None:
        sort["enum"] = list(listing.sorts)
        keys = f"by {', '.join(listing.filters)}"

    def query(name: str, schema: Schema, description: str) -> Schema:
        return {"name": name, "in": "query", "description": description, "schema": schema}

    return [
        query("page", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 1}, "Which page."),
        query(
            "limit",
            {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            "How many on a page.",
        ),
        query("sort", sort, "Which field to sort by."),
        query(
            "order",
            {"type": "string", "enum": ["asc", "desc"], "default": "desc" if listing.descending else "asc"},
            "Which way.",
        ),
        query(
            "filter",
            {"type": "string", "maxLength": MAX_FILTER},
            f"key:value terms joined by commas, all of which must hold, {keys}. A backslash protects a comma.",
        ),
    ]
