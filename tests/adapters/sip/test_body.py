"""Bodies: the session description among other parts (RFC 5621, RFC 2046, RFC 3204, RFC 6442)."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError
from adapters.sip.syntax.body import (
    MAX_DEPTH,
    MAX_PARTS,
    MediaType,
    accepts,
    keep_session_description,
    part_of,
    session_description,
    split_multipart,
)
from adapters.sip.syntax.message import MAX_MESSAGE, Request
from tests.sip_link import SDP

PIDF = b'<?xml version="1.0"?>\r\n<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="pres:a@b"/>\r\n'
ISUP = bytes([1, 0, 0x49, 0, 0, 3, 2, 0, 7, 4, 0x10, 0x0D, 0x0A, 0x2D, 0x2D])


def message(body: bytes, *headers: tuple[str, str]) -> Request:
    request = Request.build("INVITE", "sip:a@b", via="v", from_="<sip:a@b>", to="<sip:c@d>", call_id="c", cseq=1)
    for name, value in headers:
        request.set(name, value)
    request.body = body
    return request


def multipart(*parts: tuple[str, bytes], kind: str = "mixed", boundary: str = "b1", extra: str = "") -> Request:
    blocks = b"".join(b"--%s\r\n%s\r\n%s\r\n" % (boundary.encode(), head.encode(), body) for head, body in parts)
    return message(
        blocks + f"--{boundary}--\r\n".encode(), ("content-type", f'multipart/{kind};boundary="{boundary}"{extra}')
    )


SDP_PART = ("Content-Type: application/sdp\r\n", SDP)
LOCATION = ("Content-Type: application/pidf+xml\r\nContent-ID: <target123@atlanta.example.com>\r\n", PIDF)


def kept(request: Request) -> bytes:
    keep_session_description(request)
    assert request.content_type == ("application/sdp" if request.body else None)
    return request.body


def test_a_description_alone_is_left_as_it_is() -> None:
    request = message(SDP, ("content-type", "application/sdp"))
    headers = dict(request.headers)
    keep_session_description(request)
    assert (request.body, request.headers) == (SDP, headers)
    empty = message(b"")
    keep_session_description(empty)
    assert not empty.has("content-type")


@pytest.mark.parametrize(
    "kind",
    [
        "APPLICATION/SDP",
        "application/sdp;charset=utf-8",
        "application / sdp ; x",
        'Application/SDP;charset=ISO-8859-1;b="c;d"',
        "application/sdp;;broken",
    ],
)
def test_type_is_case_insensitive_and_may_have_parameters(kind: str) -> None:
    assert kept(message(SDP, ("content-type", kind))) == SDP


def test_a_description_without_type_is_recognised() -> None:
    assert kept(message(SDP)) == SDP
    with pytest.raises(PeerError, match="unknown"):
        keep_session_description(message(b"hello"))


def test_emergency_call_with_location_keeps_its_description() -> None:
    assert kept(multipart(SDP_PART, LOCATION)) == SDP
    assert kept(multipart(LOCATION, SDP_PART)) == SDP
    required = (LOCATION[0] + "Content-Disposition: render;handling=required\r\n", PIDF)
    assert kept(multipart(required, SDP_PART)) == SDP
    vehicle = (
        "Content-Type: application/EmergencyCallData.eCall.MSD\r\nContent-Disposition: by-reference\r\n",
        b"\1\2",
    )
    assert kept(multipart(SDP_PART, vehicle, LOCATION)) == SDP


def test_trunk_with_isup_keeps_its_description() -> None:
    isup = ("Content-Type: application/ISUP;version=itu-t92+;base=itu-t92+\r\n", ISUP)
    assert kept(multipart(SDP_PART, isup, kind="MIXED")) == SDP
    required = ("Content-Type: application/ISUP\r\nContent-Disposition: signal;handling=required\r\n", ISUP)
    with pytest.raises(PeerError) as caught:
        keep_session_description(multipart(SDP_PART, required))
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("disposition", "refused"),
    [
        ("", True),
        ("Content-Disposition: render\r\n", True),
        ("Content-Disposition: render;handling=required\r\n", True),
        ("Content-Disposition: render; handling = OPTIONAL\r\n", False),
        ("Content-Disposition: by-reference\r\n", False),
    ],
)
def test_unknown_part_refuses_the_call_only_if_it_must_be_understood(disposition: str, *, refused: bool) -> None:
    request = multipart(("Content-Type: text/plain\r\n" + disposition, b"hello"), SDP_PART)
    if not refused:
        assert kept(request) == SDP
        return
    with pytest.raises(PeerError) as caught:
        keep_session_description(request)
    assert caught.value.status == 415


def test_optional_body_without_description_is_ignored() -> None:
    assert kept(message(b"x", ("content-type", "text/x"), ("content-disposition", "render;handling=optional"))) == b""
    assert kept(multipart(LOCATION)) == b""


def test_early_session_is_not_the_session() -> None:
    early = ("Content-Type: application/sdp\r\nContent-Disposition: early-session;handling=optional\r\n", b"v=0 early")
    assert kept(multipart(early, SDP_PART)) == SDP
    with pytest.raises(PeerError, match="unknown"):
        keep_session_description(
            message(SDP, ("content-type", "application/sdp"), ("content-disposition", "early-session"))
        )


def test_content_encoding_that_we_lack_is_refused() -> None:
    with pytest.raises(PeerError) as caught:
        keep_session_description(message(SDP, ("content-type", "application/sdp"), ("content-encoding", "gzip")))
    assert caught.value.status == 415
    assert kept(message(SDP, ("content-type", "application/sdp"), ("content-encoding", "identity"))) == SDP


def test_transfer_encodings_are_undone() -> None:
    base64 = "Content-Type: application/sdp\r\nContent-Transfer-Encoding: BASE64\r\n"
    assert kept(multipart((base64, b"dj0w\r\nDQo="))) == b"v=0\r\n"
    quoted = "Content-Type: application/sdp\r\nContent-Transfer-Encoding: quoted-printable\r\n"
    assert kept(multipart((quoted, b"v=3D0"))) == b"v=0"
    strange = "Content-Type: application/sdp\r\nContent-Transfer-Encoding: x-uuencode\r\n"
    with pytest.raises(PeerError, match="unknown"):
        keep_session_description(multipart((strange, SDP)))


def test_alternatives_related_and_signed() -> None:
    html = ("Content-Type: text/html\r\n", b"<p>")
    assert kept(multipart(SDP_PART, html, kind="alternative")) == SDP
    with pytest.raises(PeerError, match="unknown"):
        keep_session_description(multipart(html, kind="alternative"))
    root = ("Content-Type: application/sdp\r\nContent-ID: <root@x>\r\n", SDP)
    assert kept(multipart(html, root, kind="related", extra=';start="<root@x>"')) == SDP
    assert kept(multipart(SDP_PART, html, kind="related")) == SDP
    signature = ("Content-Type: application/pkcs7-signature\r\n", b"\x30\x82")
    assert kept(multipart(SDP_PART, signature, kind="signed")) == SDP


def test_compact_names_folding_and_bare_line_feeds_within_parts() -> None:
    assert kept(multipart(("c: application/sdp;\r\n x=1\r\n", SDP))) == SDP
    lines = message(
        b"preamble\n--b\nContent-Type: application/sdp\n\nv=0\n--b--\nepilogue",
        ("content-type", "multipart/mixed;boundary=b"),
    )
    assert kept(lines) == b"v=0"


def test_boundaries_are_whole_lines() -> None:
    inner = b"--b12\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--b12--"
    outer = multipart(('Content-Type: multipart/mixed;boundary="b12"\r\n', inner), boundary="b1")
    assert kept(outer) == b"v=0"
    data = b"a --b1\r\n--b1 x\r\n-- b1"
    (only,) = split_multipart(part_of(multipart(("Content-Type: application/sdp\r\n", data), boundary="b1")))
    assert only.content == data


def test_last_boundary_may_be_missing() -> None:
    request = message(b"--b\r\n\r\nx\r\n--b\r\nContent-Type: application/sdp\r\n\r\nv=0", ("content-type", "x/y"))
    request.set("content-type", "multipart/alternative;boundary=b")
    assert kept(request) == b"v=0"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/mixed", b"--b\r\n\r\nx\r\n--b--"),
        ('multipart/mixed;boundary=""', b"--\r\n\r\nx\r\n----"),
        ("multipart/mixed;boundary=" + "b" * 71, b"--" + b"b" * 71 + b"\r\n\r\nx"),
        ("multipart/mixed;boundary=b", b"no boundary"),
        ("multipart/mixed;boundary=b", b"--b--"),
        ("multipart/mixed;boundary=b", b"--b\r\nno header\r\n\r\nx\r\n--b--"),
        ("multipart/mixed;boundary=b", b"--b\r\n" + b"X: y\r\n" * 40 + b"\r\nx\r\n--b--"),
        ("multipart/mixed;boundary=b", b"--b\r\n\r\n" * (MAX_PARTS + 2) + b"--b--"),
    ],
)
def test_malformed_multipart_is_400(kind: str, body: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        keep_session_description(message(body, ("content-type", kind)))
    assert caught.value.status == 400


def test_nesting_has_an_end() -> None:
    body = SDP
    head = "Content-Type: application/sdp\r\n"
    for depth in range(MAX_DEPTH + 2):
        request = multipart((head, body), boundary=f"d{depth}")
        body, head = request.body, f"Content-Type: {request.get('content-type')}\r\n"
        if depth < MAX_DEPTH:
            assert session_description(part_of(request)) == SDP
    with pytest.raises(PeerError, match="too deep"):
        session_description(part_of(request))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([], "application/sdp", True),
        ([], "text/plain", False),
        (["application/sdp"], "application/sdp", True),
        (["text/html, Application/SDP;level=1"], "application/sdp", True),
        (["text/html", "application/*"], "application/sdp", True),
        (["*/*;q=0.1"], "application/sdp", True),
        (["*/*;q=0.0"], "application/sdp", False),
        (["text/nobodyKnowsThis"], "application/sdp", False),
        ([""], "application/sdp", False),
    ],
)
def test_accepts(values: list[str], kind: str, *, expected: bool) -> None:
    request = message(b"")
    for value in values:
        request.add("accept", value)
    assert accepts(request, kind) is expected


@given(st.binary(max_size=400), st.sampled_from(["", "b", "--", "b b", "\\", "ü"]), st.text(max_size=20))
def test_any_body_is_read_or_refused(body: bytes, boundary: str, kind: str) -> None:
    marker = b"\r\n--" + boundary.encode() + b"\r\n"
    for value in (f'multipart/mixed;boundary="{boundary}"', f"multipart/{kind};boundary={boundary}", kind):
        request = message(body.replace(b"0", marker), ("content-type", value))
        refusal = None
        try:
            keep_session_description(request)
        except PeerError as exc:
            refusal = exc.status
        assert refusal in (None, 400, 415)
    assert "\n" not in MediaType.parse(kind).name


@given(st.lists(st.binary(max_size=60).filter(lambda block: b"--bound" not in block), min_size=1, max_size=5))
def test_parts_come_back_byte_for_byte(blocks: list[bytes]) -> None:
    request = multipart(*(("Content-Type: application/x\r\n", block) for block in blocks), boundary="bound")
    assert [part.content for part in split_multipart(part_of(request))] == blocks


@pytest.mark.parametrize("pattern", [b"--" + b"-" * 70, b"\n--b", b"\r\n--b\r\n", b"--b--b", b"--", b"\n"])
def test_hostile_bodies_take_no_time(pattern: bytes) -> None:
    body = pattern * (MAX_MESSAGE // len(pattern))
    for boundary in ("b", "-" * 70, "-" * 35):
        request = message(body, ("content-type", f'multipart/mixed;boundary="{boundary}"'))
        started = time.process_time()
        with suppress(PeerError):
            keep_session_description(request)
        assert time.process_time() - started < 0.05
