"""The few files a browser gets, read once and served from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

from aiohttp import web

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGES: Mapping[str, str] = {"/": "index.html", "/api/v1/docs": "docs.html"}
ASSETS = ("style.css", "wallboard.js", "docs.js", "icon.svg")
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


class File:
    """One file with its type and its tag."""

    def __init__(self, name: str) -> None:
        self._body = resources.files(__name__).joinpath(name).read_bytes()
        self._type = _TYPES[name[name.rindex(".") :]]
        self._etag = hashlib.sha256(self._body).hexdigest()[:20]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The file, or 304 when the browser has this very version."""
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _CSP}
        known = request.if_none_match or ()
        if any(tag.value == self._etag for tag in known):
            response = web.Response(status=304, headers=headers)
        else:
            response = web.Response(body=self._body, content_type=self._type, charset="utf-8", headers=headers)
        response.etag = self._etag
        return response


def add_pages(app: web.Application) -> None:
    """Serve the pages and their assets."""
    for path, name in PAGES.items():
        app.router.add_get(path, File(name).serve)
    assets = {name: File(name) for name in ASSETS}

    async def asset(request: web.Request) -> web.StreamResponse:
        file = assets.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound
        return await file.serve(request)

    app.router.add_get("/assets/{name}", asset)
