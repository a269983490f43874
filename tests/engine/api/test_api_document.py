"""The OpenAPI document and the pages."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from engine.api.app import ROUTES
from engine.api.openapi import operation_id
from tests.engine.api.fakes import Rig, running


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as served:
        yield served


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


async def test_the_document_is_whole(rig: Rig) -> None:
    document = (await rig.ask("GET", "/api/v1/openapi.json")).json
    assert document["openapi"] == "3.1.0"
    assert set(document) == {"openapi", "info", "tags", "paths", "components"}
    assert document["info"]["title"]
    assert document["info"]["version"]
    schemas = document["components"]["schemas"]
    for reference in references(document):
        prefix, _, name = reference.rpartition("/")
        assert prefix == "#/components/schemas"
        assert name in schemas
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in schemas)
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in document["tags"]}
    for path, item in document["paths"].items():
        for operation in item.values():
            assert set(operation["tags"]) <= tags
            assert operation["responses"]
            assert all(response["description"] for response in operation["responses"].values())
            declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path))
            for requirement in operation["security"]:
                assert set(requirement) <= set(document["components"]["securitySchemes"])


async def test_the_document_lists_every_route_served(rig: Rig) -> None:
    paths = (await rig.ask("GET", "/api/v1/openapi.json")).json["paths"]
    for route in rig.app[ROUTES]:
        assert paths[route.path][route.method.lower()]["operationId"] == operation_id(route)
    served = {
        (route.method, route.resource.canonical)
        for route in rig.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert served - described == {("GET", "/"), ("GET", "/api/v1/docs"), ("GET", "/assets/{name}")}


async def test_bodies_are_described_by_what_validates_them(rig: Rig) -> None:
    document = (await rig.ask("GET", "/api/v1/openapi.json")).json
    body = document["paths"]["/api/v1/agents/{id}/state"]["put"]["requestBody"]
    assert body["required"] is True
    schema = document["components"]["schemas"]["AgentState"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["state"]
    assert document["components"]["schemas"]["AgentStateRequest"]["enum"] == ["ready", "break", "offline"]


@pytest.mark.parametrize("path", ["/", "/api/v1/docs"])
async def test_pages_need_nothing_from_elsewhere_and_nothing_inline(rig: Rig, path: str) -> None:
    page = await rig.ask("GET", path)
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    assert '<html lang="en">' in text
    assert not re.search(r"https?://|<style|\sstyle=|\son\w+=|<script(?! src=)", text)
    assets = re.findall(r'(?:src|href)="(/assets/[^"]+)"', text)
    assert len(assets) >= 3
    for asset in assets:
        answer = await rig.ask("GET", asset)
        assert answer.status == 200
        assert answer.body
        again = await rig.ask("GET", asset, headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status == 304
    assert "'unsafe" not in page.headers["Content-Security-Policy"]


async def test_there_are_no_other_assets(rig: Rig) -> None:
    for name in ("nothing.js", "..%2f__init__.py", "__init__.py"):
        assert (await rig.ask("GET", f"/assets/{name}")).status == 404
