"""What fuzzing starts from: the torture messages, messages of real phones, and courses of dialogs.

`captured/` holds what baresip, pjsua2 and SIPp really sent in calls over
loopback; `found/TARGET/` what once broke a target.
"""

from __future__ import annotations

from pathlib import Path

from adapters.sip.syntax.names import CASING, COMPACT_FORMS

HERE = Path(__file__).parent
SIP = HERE.parent / "adapters" / "sip"
MESSAGE_FOLDERS = (SIP / "rfc4475", SIP / "rfc5118", HERE / "captured")

DICTIONARY = [
    *(f"\\x0d\\x0a{name}: " for name in CASING.values()),
    *(f"\\x0d\\x0a{name}:" for name in COMPACT_FORMS),
    "SIP/2.0/UDP ",
    "SIP/2.0/TLS ",
    "SIP/2.0 ",
    "z9hG4bK",
    ";branch=",
    ";tag=",
    ";rport",
    ";received=",
    ";lr",
    ";transport=tcp",
    ";handling=optional",
    ";boundary=",
    "multipart/mixed",
    "application/sdp",
    "--b\\x0d\\x0a",
    "sip:",
    "sips:",
    "tel:+",
    "[::1]",
    "%00",
    "INVITE",
    "REGISTER",
    "Digest ",
    "qop=auth",
    "nonce=",
    "realm=",
    "m=audio ",
    "a=rtpmap:",
    "c=IN IP4 ",
    "\\x0d\\x0a\\x0d\\x0a",
]

# Courses of `dialogs`: a call that comes and ends, one that goes out, a registration, a re-INVITE.
COURSES = [
    bytes([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 7, 0, 1, 7, 0, 1, 5, 0, 0, 0, 2, 1, 1, 1, 0, 0, 1, 1, 0]),
    bytes([9, 0, 3, 0, 1, 0, 0, 0, 1, 1, 3, 0, 4, 0, 0, 1, 1, 1, 11, 2, 7, 0, 4, 11, 4]),
    bytes([0, 7, 0, 0, 0, 0, 0, 1, 1, 0, 11, 6]),
    bytes([9, 0, 3, 0, 4, 0, 0, 1, 1, 0, 0, 1, 1, 2, 0, 0, 1, 1, 10, 1, 5, 0, 0, 11, 5, 7, 0, 5, 3, 0, 4]),
    bytes(range(256)),
]


def seeds(target: str) -> list[bytes]:
    """Inputs of a target that are worth changing."""
    found = [path.read_bytes() for path in sorted((HERE / "found" / target).glob("*"))]
    messages = [path.read_bytes() for folder in MESSAGE_FOLDERS for path in sorted(folder.glob("*.dat"))]
    bodies = [message.partition(b"\r\n\r\n")[2] for message in messages]
    lines = [line for message in messages for line in message.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
    if target == "message":
        found += messages
    elif target == "stream":
        found += [b"\1\5\t\xff" + message for message in messages]
    elif target == "sdp":
        found += [body for body in bodies if body.startswith(b"v=0")]
    elif target == "digest":
        found += [value for value in (line.partition(b": ")[2] for line in lines) if value.startswith(b"Digest")]
        found.append(b'Digest realm="a", nonce="b", algorithm=SHA-256, qop="auth,auth-int", opaque="c", stale=TRUE')
    elif target == "values":
        found += sorted({line.partition(b":")[2].strip() for line in lines})
    elif target == "body":
        found.append(
            b'content-type:multipart/mixed;boundary="b"\n\n--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--b--'
        )
        found += [b"content-type:application/sdp\n\n" + body for body in bodies if body]
    else:
        found += COURSES
    return found


def write_seeds(target: str, folder: Path) -> None:
    """Put the seeds of a target into a folder, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(target)):
        (folder / f"{number:04}").write_bytes(data)
