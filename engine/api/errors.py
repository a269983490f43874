"""The one form in which every error leaves: {"error": {"code", "message", "details"}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from aiohttp import web

CODES: Mapping[int, str] = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
}


@dataclass(frozen=True, slots=True)
class Detail:
    """What is wrong with one field of the request."""

    field: str
    message: str


class ApiError(Exception):
    """An answer that is an error; `message` is a sentence for people."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        details: Sequence[Detail] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = tuple(details)
        self.headers = dict(headers or {})


def error_body(status: int, message: str, details: Sequence[Detail] = ()) -> bytes:
    """The JSON text of an error answer."""
    code = CODES.get(status, "error")
    return msgspec.json.encode({"error": {"code": code, "message": message, "details": details}})


def error_response(error: ApiError) -> web.Response:
    """The answer that `error` stands for."""
    return web.Response(
        status=error.status,
        body=error_body(error.status, error.message, error.details),
        content_type="application/json",
        headers=error.headers,
    )
