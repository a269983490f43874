"""Kamailio (unpacked into .cache/switches by `tools/switches`) as a proxy that stays in the path of each call.

It passes what comes from others on to one SIP server, and what comes from that server on to phones. Phones may
register through it (Path, RFC 3327).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.certificates import Files
from tests.peers.asterisk import SWITCHES
from tests.peers.process import PeerProcess
from tests.ports import free_port

# With TLS, the listener and our connections show one certificate, and both check the other's.
_TLS = """\
enable_tls = yes
listen = tls:{address}:{tls_port}
"""

_TLS_MODULE = """\
loadmodule "tls.so"
modparam("tls", "certificate", "{certificate}")
modparam("tls", "private_key", "{key}")
modparam("tls", "ca_list", "{ca}")
modparam("tls", "tls_method", "TLSv1.2+")
modparam("tls", "verify_certificate", 1)
modparam("tls", "require_certificate", 1)
"""

# $si: where a request came from; $du, or else $ru: where it goes.
_CONFIG = """\
debug = 2
log_stderror = yes
fork = yes
children = 1
tcp_children = 1
auto_aliases = no
listen = udp:{address}:{port}
listen = tcp:{address}:{port}
tcp_source_ipv4 = {address}
{tls}
mpath = "{root}/usr/lib/x86_64-linux-gnu/kamailio/modules/"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "xlog.so"
loadmodule "path.so"
{tls_module}
modparam("tm", "failure_reply_mode", 3)

request_route {{
    if (!mf_process_maxfwd_header("10")) {{
        sl_send_reply("483", "Too Many Hops");
        exit;
    }}
    if (has_totag()) {{
        if (loose_route()) {{
            xlog("L_NOTICE", "PASSED dialog $rm $si\\n");
            t_relay();
        }} else if (is_method("ACK")) {{
            if (t_check_trans()) t_relay();
        }} else {{
            xlog("L_NOTICE", "PASSED astray $rm $si\\n");
            sl_send_reply("404", "Not Here");
        }}
        exit;
    }}
    if (is_method("CANCEL")) {{
        xlog("L_NOTICE", "PASSED cancel $rm $si\\n");
        if (t_check_trans()) t_relay();
        exit;
    }}
    t_check_trans();
    remove_hf("Route");  # the one that led here
    xlog("L_NOTICE", "PASSED initial $rm $si\\n");
    if (is_method("INVITE|SUBSCRIBE|REFER")) record_route();
    if (is_method("REGISTER")) add_path();
    if ($si != "{server_address}") $du = "sip:{server};transport={transport}";
{phones}
    if (!t_relay()) sl_reply_error();
}}
"""


class Passed(NamedTuple):
    """A request that the proxy saw."""

    kind: str  # "initial", "dialog", "cancel", or "astray": within a dialog, but without the route through us
    method: str
    source: str  # the address that it came from


class Kamailio:
    """One Kamailio on UDP and TCP, and on TLS if it has a certificate; `async with Kamailio(...) as proxy`.

    Args:
        folder: an empty folder of its own for settings and log.
        server: `host:port` of the server that it stands before.
        address: loopback address to bind, with `port`; a free one by default.
        phones: user parts, and the SIP URIs to send calls for them to; others go where the request says.
        transport: "udp", "tcp" or "tls", between it and the server.
        tls_port: for TLS.
        certificate: what it shows over TLS, as a server and as a client.
        ca: PEM file of the roots that all who speak TLS with it are verified by.
    """

    def __init__(
        self,
        folder: Path,
        server: str,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        phones: Mapping[str, str] | None = None,
        transport: str = "udp",
        tls_port: int | None = None,
        certificate: Files | None = None,
        ca: Path | None = None,
    ) -> None:
        self.folder = folder
        self.address = address
        self.port = port if port is not None else free_port(address)
        self._tls_port = tls_port
        tls = tls_module = ""
        if certificate is not None:
            tls = _TLS.format(address=address, tls_port=tls_port)
            tls_module = _TLS_MODULE.format(certificate=certificate.certificate, key=certificate.key, ca=ca)
        self._process = PeerProcess("kamailio", folder / "kamailio.log")
        server_address = server.rsplit(":", 1)[0]
        rules = [
            f'    if ($si == "{server_address}" && $rU == "{user}") $ru = "{uri}";'
            for user, uri in (phones or {}).items()
        ]
        self._config = _CONFIG.format(
            address=address,
            port=self.port,
            root=SWITCHES,
            server=server,
            server_address=server_address,
            transport=transport,
            tls=tls,
            tls_module=tls_module,
            phones="\n".join(rules),
        )

    @property
    def remote(self) -> str:
        """`host:port`, as a phone's proxy."""
        return f"{self.address}:{self.port}"

    def uri(self, user: str) -> str:
        return f"sip:{user}@{self.remote}"

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "kamailio.cfg"
        config.write_text(self._config)
        arguments: list[str | Path] = ["-DD", "-E", "-m", "32", "-f", config, "-Y", self.folder, "-w", self.folder]
        await self._process.start([SWITCHES / "kamailio", *arguments], folder=self.folder)
        try:
            await self._process.bound(self.address, self.port, "tcp")
            if self._tls_port is not None:
                await self._process.bound(self.address, self._tls_port, "tcp")
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def passed(self) -> list[Passed]:
        """Return the requests that it has seen, in order, repeats included."""
        text = self._process.log.read_text(errors="replace")
        return [Passed(*match.groups()) for match in re.finditer(r"PASSED (\w+) (\w+) (\S+)", text)]

    async def stop(self) -> None:
        """End it; safe to repeat."""
        await self._process.stop()
