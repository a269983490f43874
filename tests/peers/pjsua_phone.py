"""A pjsua2 phone as a program: JSON commands on standard input, JSON replies and events on standard output.

Run as a process of its own by `tests.peers.pjsua`; pjsua2 keeps global state
and its own threads, and must not share a process with the tests.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

import pjsua2 as pj

_STATES = {
    pj.PJSIP_INV_STATE_CALLING: "calling",
    pj.PJSIP_INV_STATE_INCOMING: "incoming",
    pj.PJSIP_INV_STATE_EARLY: "early",
    pj.PJSIP_INV_STATE_CONNECTING: "connecting",
    pj.PJSIP_INV_STATE_CONFIRMED: "confirmed",
    pj.PJSIP_INV_STATE_DISCONNECTED: "disconnected",
}


# pjlib prints to standard output before its log is set up: keep the pipe for ourselves, give it standard error.
_pipe = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def report(kind: str, **facts: object) -> None:
    _pipe.write(json.dumps({"kind": kind, **facts}) + "\n")
    _pipe.flush()


def open_player(path: str) -> Any:
    player = pj.AudioMediaPlayer()
    player.createPlayer(path, pj.PJMEDIA_FILE_NO_LOOP)
    return player


class PhoneCall(pj.Call):  # type: ignore[misc]  # pjsua2 has no types
    """A call that plays and records while its audio is active."""

    def __init__(self, phone: Phone, call_id: int = pj.PJSUA_INVALID_ID) -> None:
        super().__init__(phone.account, call_id)
        self._phone = phone
        self._player: Any = None
        self._recorder: Any = None

    def onCallState(self, _: Any) -> None:  # noqa: N802  # the name that pjsua2 calls
        info = self.getInfo()
        state = _STATES.get(info.state, str(info.state))
        facts = {"call": info.id, "state": state, "code": info.lastStatusCode, "reason": info.lastReason}
        if state == "disconnected":
            recorded = self._recorder is not None
            self._player = self._recorder = None  # pjsua closes the files soon, in a thread of its own
            self._phone.calls.pop(info.id, None)
            if recorded:
                self._phone.closing.append((time.monotonic() + 2.0, facts))
                return
        report("call", **facts)

    def onCallMediaState(self, _: Any) -> None:  # noqa: N802  # the name that pjsua2 calls
        info = self.getInfo()
        for index, media in enumerate(info.media):
            if media.type == pj.PJMEDIA_TYPE_AUDIO:
                report("media", call=info.id, status=int(media.status))
                if media.status in (pj.PJSUA_CALL_MEDIA_ACTIVE, pj.PJSUA_CALL_MEDIA_REMOTE_HOLD):
                    self._connect(self.getAudioMedia(index))

    def _connect(self, audio: Any) -> None:
        settings = self._phone.settings
        if settings["play"] and self._player is None:
            self._player = open_player(settings["play"])
        if settings["record"] and self._recorder is None:
            self._recorder = pj.AudioMediaRecorder()
            self._recorder.createRecorder(settings["record"])
        if self._player is not None:
            self._player.startTransmit(audio)
        if self._recorder is not None:
            audio.startTransmit(self._recorder)

    def play(self, path: str) -> None:
        audio = self.getAudioMedia(-1)
        if self._player is not None:
            self._player.stopTransmit(audio)
        self._player = open_player(path)
        self._player.startTransmit(audio)

    def onCallTransferStatus(self, prm: Any) -> None:  # noqa: N802  # the name that pjsua2 calls
        report("transfer", call=self.getId(), code=int(prm.statusCode), final=bool(prm.finalNotify))

    def onDtmfDigit(self, prm: Any) -> None:  # noqa: N802  # the name that pjsua2 calls
        report("dtmf", call=self.getId(), digit=prm.digit)


class PhoneAccount(pj.Account):  # type: ignore[misc]  # pjsua2 has no types
    """Reports registrations and rings for calls."""

    def __init__(self, phone: Phone) -> None:
        super().__init__()
        self._phone = phone

    def onRegState(self, prm: Any) -> None:  # noqa: N802  # the name that pjsua2 calls
        report("registration", code=int(prm.code), active=bool(self.getInfo().regIsActive))

    def onMwiInfo(self, prm: Any) -> None:  # noqa: N802  # the name that pjsua2 calls
        report("messages", text=prm.rdata.wholeMsg.partition("\r\n\r\n")[2])

    def onIncomingCall(self, prm: Any) -> None:  # noqa: N802  # the name that pjsua2 calls
        call = PhoneCall(self._phone, prm.callId)
        self._phone.calls[prm.callId] = call
        info = call.getInfo()
        report("incoming", call=info.id, remote=info.remoteUri, headers=prm.rdata.wholeMsg)
        answer = pj.CallOpParam()
        answer.statusCode = self._phone.settings["answer"]
        call.answer(answer)


class Colleague(pj.Buddy):  # type: ignore[misc]  # pjsua2 has no types
    """Somebody whose presence is watched."""

    def onBuddyState(self) -> None:  # noqa: N802  # the name that pjsua2 calls
        info = self.getInfo()
        if info.subState == pj.PJSIP_EVSUB_STATE_ACTIVE:
            online = info.presStatus.status == pj.PJSUA_BUDDY_STATUS_ONLINE
            report("presence", uri=info.uri, online=online, activity=info.presStatus.statusText)


class Phone:
    """One endpoint with one account."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.calls: dict[int, PhoneCall] = {}
        self.colleagues: list[Colleague] = []
        self.closing: list[tuple[float, dict[str, object]]] = []  # ended calls whose recordings are not complete
        self.endpoint = pj.Endpoint()
        self.endpoint.libCreate()
        config = pj.EpConfig()
        config.uaConfig.threadCnt = 0
        config.uaConfig.mainThreadOnly = True
        config.logConfig.level = 4
        config.logConfig.consoleLevel = 0
        config.logConfig.filename = settings["log"]
        config.medConfig.clockRate = 8000
        config.medConfig.sndClockRate = 8000
        config.medConfig.noVad = True
        config.medConfig.ecTailLen = 0
        config.medConfig.quality = 10
        self.endpoint.libInit(config)
        transport = pj.TransportConfig()
        transport.port = settings["port"]
        transport.boundAddress = settings["address"]
        transport.publicAddress = settings["address"]
        kind = pj.PJSIP_TRANSPORT_TCP if settings["transport"] == "tcp" else pj.PJSIP_TRANSPORT_UDP
        self.endpoint.transportCreate(kind, transport)
        self.endpoint.libStart()
        self.endpoint.audDevManager().setNullDev()
        for codec in self.endpoint.codecEnum2():
            wanted = next(
                (n for n, name in enumerate(settings["codecs"]) if codec.codecId.startswith(name + "/")), None
            )
            self.endpoint.codecSetPriority(codec.codecId, 0 if wanted is None else 250 - wanted)
        self.account = PhoneAccount(self)
        self.account.create(self._account_config())

    def _account_config(self) -> Any:
        settings = self.settings
        config = pj.AccountConfig()
        config.idUri = f"sip:{settings['user']}@{settings['domain']}"
        config.mediaConfig.transportConfig.boundAddress = settings["address"]
        config.mediaConfig.transportConfig.publicAddress = settings["address"]
        config.mediaConfig.transportConfig.port = settings["rtp_port"]
        config.mediaConfig.transportConfig.portRange = 40
        if settings["password"] is not None:
            credentials = pj.AuthCredInfo("digest", "*", settings["user"], 0, settings["password"])
            config.sipConfig.authCreds.append(credentials)
        if settings["srtp"]:
            config.mediaConfig.srtpUse = pj.PJMEDIA_SRTP_MANDATORY
            config.mediaConfig.srtpSecureSignaling = 0
        if "100rel" in settings["demands"]:
            config.callConfig.prackUse = pj.PJSUA_100REL_MANDATORY
        if "timer" in settings["demands"]:
            config.callConfig.timerUse = pj.PJSUA_SIP_TIMER_REQUIRED
        suffix = ";transport=tcp" if settings["transport"] == "tcp" else ""
        if settings["proxy"] is not None:
            config.sipConfig.proxies.append(f"sip:{settings['proxy']}{suffix};lr")
        config.mwiConfig.enabled = settings["messages"]
        if settings["register"]:
            config.regConfig.registrarUri = f"sip:{settings['domain']}{suffix}"
            config.regConfig.timeoutSec = 60
        return config

    def do_dial(self, uri: str, headers: dict[str, str]) -> int:
        call = PhoneCall(self)
        parameters = pj.CallOpParam(True)
        parameters.opt.audioCount = 1
        parameters.opt.videoCount = 0
        for name, value in headers.items():
            header = pj.SipHeader()
            header.hName, header.hValue = name, value
            parameters.txOption.headers.append(header)
        call.makeCall(uri, parameters)
        number: int = call.getId()
        self.calls[number] = call
        return number

    def do_answer(self, call: int, code: int) -> None:
        parameters = pj.CallOpParam()
        parameters.statusCode = code
        self.calls[call].answer(parameters)

    def do_hang_up(self, call: int) -> None:
        if call in self.calls:
            self.calls[call].hangup(pj.CallOpParam())

    def do_hold(self, call: int) -> None:
        self.calls[call].setHold(pj.CallOpParam())

    def do_resume(self, call: int) -> None:
        parameters = pj.CallOpParam(True)
        parameters.opt.flag = pj.PJSUA_CALL_UNHOLD
        self.calls[call].reinvite(parameters)

    def do_watch(self, uri: str) -> None:
        config = pj.BuddyConfig()
        config.uri = uri
        config.subscribe = True
        colleague = Colleague()
        colleague.create(self.account, config)
        self.colleagues.append(colleague)

    def do_transfer(self, call: int, uri: str) -> None:
        self.calls[call].xfer(uri, pj.CallOpParam())

    def do_transfer_to_call(self, call: int, other: int) -> None:
        self.calls[call].xferReplaces(self.calls[other], pj.CallOpParam())

    def do_dtmf(self, call: int, digits: str, method: str) -> None:
        parameters = pj.CallSendDtmfParam()
        parameters.digits = digits
        parameters.duration = 160
        parameters.method = pj.PJSUA_DTMF_METHOD_SIP_INFO if method == "info" else pj.PJSUA_DTMF_METHOD_RFC2833
        self.calls[call].sendDtmf(parameters)

    def do_play(self, call: int, path: str) -> None:
        self.calls[call].play(path)

    def do_statistics(self, call: int) -> dict[str, int]:
        rtcp = self.calls[call].getStreamStat(0).rtcp
        return {"sent": rtcp.txStat.pkt, "received": rtcp.rxStat.pkt, "lost": rtcp.rxStat.loss}

    def run(self) -> None:
        """Serve commands until standard input closes."""
        report("ready")
        buffer = b""
        while True:
            self.endpoint.libHandleEvents(10)
            self._report_closed()
            if not select.select([0], [], [], 0)[0]:
                continue
            data = os.read(0, 65536)
            if not data:
                break
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                self._serve(json.loads(line))
        self.endpoint.hangupAllCalls()
        for _ in range(20):  # let the last BYE and un-REGISTER leave
            self.endpoint.libHandleEvents(10)
        self.account.shutdown()
        self.endpoint.libDestroy()

    def _report_closed(self) -> None:
        """Report the calls that ended once the header of the recording tells its length."""
        for entry in tuple(self.closing):
            deadline, facts = entry
            with Path(self.settings["record"]).open("rb") as file:
                length = int.from_bytes(file.read(44)[40:], "little")
            if length > 0 or time.monotonic() > deadline:
                self.closing.remove(entry)
                report("call", **facts)

    def _serve(self, command: dict[str, Any]) -> None:
        do = getattr(self, f"do_{command['do']}")
        try:
            result = do(**command.get("with", {}))
        except pj.Error as exc:
            report("reply", ok=False, result=exc.info())
        except KeyError as exc:
            report("reply", ok=False, result=f"no such call: {exc}")
        else:
            report("reply", ok=True, result=result)


if __name__ == "__main__":
    Phone(json.loads(sys.argv[1])).run()
    # pjsua2's objects must not outlive the library: leave without Python's own tidying up.
    os._exit(0)
