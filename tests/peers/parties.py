"""Phones of several makes behind one interface: parties of a call that speak from the start and keep what they hear."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tests.audio import Samples, save_wav
from tests.peers.baresip import Baresip
from tests.peers.linphone import Linphone
from tests.peers.pjsua import Pjsua
from tests.ports import loopback_address
from tests.speech import RATE, speech

# Silence before the speech: both ends, and the phones' jitter buffers, are settled by then.
LEAD_S = 0.4
SPEECH_S = 2.0
# What a call needs for all of it.
TALK_S = LEAD_S + SPEECH_S + 0.4

# pjsua_call_media_status
_ACTIVE, _LOCAL_HOLD, _REMOTE_HOLD = 1, 2, 3


def write_words(folder: Path, variant: int) -> Path:
    """Write the silence and the speech that a party says to a WAV file."""
    folder.mkdir(parents=True, exist_ok=True)
    lead = np.zeros(int(LEAD_S * RATE), dtype=np.int16)
    return save_wav(folder / "words.wav", np.concatenate([lead, speech(SPEECH_S, variant)]), RATE)


class Party(ABC):
    """A phone with one call at a time; `async with party("baresip", ...) as caller`."""

    words: Samples  # what it says in each call, from its start
    words_file: Path
    keeps_after_hold = True  # what it hears once it has held and resumed

    async def __aenter__(self) -> Self:
        await self._phone.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._phone.__aexit__(kind, error, trace)

    _phone: Any

    @property
    def uri(self) -> str:
        """Where a fixed contact reaches it."""
        return str(self._phone.uri)

    @abstractmethod
    async def dial(self, uri: str) -> None:
        """Call somebody; `talking` tells when the other has answered."""

    @abstractmethod
    async def ringing(self) -> None:
        """Wait until it is called: one that does not answer at once."""

    @abstractmethod
    async def talking(self) -> None:
        """Wait until its call is up, whoever called."""

    @abstractmethod
    async def hold(self) -> None:
        """Put its call on hold, and wait until that is agreed."""

    @abstractmethod
    async def resume(self) -> None:
        """Take its call back, and wait until that is agreed."""

    @abstractmethod
    async def hang_up(self) -> None:
        """End its call, or give up dialling, or refuse."""

    @abstractmethod
    async def ended(self) -> None:
        """Wait until its call has ended."""

    @abstractmethod
    async def press(self, digit: str) -> None:
        """Type a digit (RFC 4733)."""

    @abstractmethod
    async def pressed(self, digit: str) -> None:
        """Wait until the other one's digit has come."""

    @abstractmethod
    async def say_again(self) -> None:
        """Say its words once more, to their end."""

    @abstractmethod
    async def transfer(self, uri: str) -> None:
        """Send the other one of its call to a URI (REFER)."""

    def heard(self) -> Samples:
        """Return what its last call brought in; 8 kHz. Complete once the call has ended."""
        heard: Samples = self._phone.heard()
        return heard


class BaresipParty(Party):
    keeps_after_hold = False

    def __init__(self, folder: Path, user: str, **options: Any) -> None:
        self._phone = Baresip(folder, user, **options)

    async def dial(self, uri: str) -> None:
        await self._phone.dial(uri)

    async def ringing(self) -> None:
        await self._phone.expect("call_incoming")

    async def talking(self) -> None:
        await self._phone.expect("call_established")

    async def press(self, digit: str) -> None:
        await self._phone.send_dtmf(digit)

    async def pressed(self, digit: str) -> None:
        await self._phone.expect("call_dtmf_start", param=digit)

    async def hold(self) -> None:
        await self._phone.hold()

    async def resume(self) -> None:
        await self._phone.resume()

    async def hang_up(self) -> None:
        await self._phone.hang_up()

    async def ended(self) -> None:
        await self._phone.expect("call_closed")

    async def say_again(self) -> None:
        await self._phone.play(self.words_file)
        await asyncio.sleep(TALK_S)

    async def transfer(self, uri: str) -> None:
        await self._phone.command("transfer", uri)


class LinphoneParty(Party):
    _call = 0

    def __init__(self, folder: Path, user: str, **options: Any) -> None:
        self._phone = Linphone(folder, user, **options)

    async def dial(self, uri: str) -> None:
        self._call = await self._phone.dial(uri)

    async def ringing(self) -> None:
        self._call = (await self._phone.expect("incoming"))["call"]

    async def talking(self) -> None:
        self._call = (await self._phone.expect("connected"))["call"]
        await self._phone.expect("streams", call=self._call)

    async def press(self, digit: str) -> None:
        await self._phone.send_dtmf(digit)

    async def pressed(self, digit: str) -> None:
        await self._phone.expect("dtmf", digit=digit)

    async def hold(self) -> None:
        await self._phone.hold()
        await self._phone.expect("paused", call=self._call)

    async def resume(self) -> None:
        await self._phone.resume(self._call)
        await self._phone.expect("streams", call=self._call)

    async def hang_up(self) -> None:
        await self._phone.hang_up(self._call)

    async def ended(self) -> None:
        await self._phone.expect(("ended", "error"))

    async def say_again(self) -> None:
        await asyncio.sleep(TALK_S + LEAD_S + SPEECH_S)  # it says them over and over: somewhere between are all of them

    async def transfer(self, uri: str) -> None:
        await self._phone.transfer(self._call, uri)


class PjsuaParty(Party):
    _call = 0

    def __init__(self, folder: Path, user: str, **options: Any) -> None:
        self._phone = Pjsua(folder, user, **options)

    async def dial(self, uri: str) -> None:
        self._call = await self._phone.dial(uri)

    async def ringing(self) -> None:
        self._call = (await self._phone.expect("incoming"))["call"]

    async def talking(self) -> None:
        self._call = (await self._phone.expect("call", state="confirmed"))["call"]
        await self._phone.expect("media", call=self._call, status=_ACTIVE)

    async def press(self, digit: str) -> None:
        await self._phone.send_dtmf(self._call, digit)

    async def pressed(self, digit: str) -> None:
        await self._phone.expect("dtmf", digit=digit)

    async def hold(self) -> None:
        await self._phone.hold(self._call)
        await self._phone.expect("media", call=self._call, status=_LOCAL_HOLD)

    async def resume(self) -> None:
        await self._phone.resume(self._call)
        await self._phone.expect("media", call=self._call, status=_ACTIVE)

    async def hang_up(self) -> None:
        await self._phone.hang_up(self._call)

    async def ended(self) -> None:
        await self._phone.expect("call", call=self._call, state="disconnected")

    async def say_again(self) -> None:
        await self._phone.play(self._call, self.words_file)
        await asyncio.sleep(TALK_S)

    async def transfer(self, uri: str) -> None:
        await self._phone.transfer(self._call, uri)


_MAKES: dict[str, type[BaresipParty | LinphoneParty | PjsuaParty]] = {
    "baresip": BaresipParty,
    "linphone": LinphoneParty,
    "pjsua": PjsuaParty,
}


def party(make: str, folder: Path, user: str, *, variant: int, answers: bool = True, **options: Any) -> Party:
    """Return a phone of this make: baresip, linphone or pjsua.

    Args:
        make: which.
        folder: an empty folder of its own.
        user: the account's user part.
        variant: what it says (see `tests.speech`).
        answers: at once; otherwise it rings.
        options: those of the phone's class; `address` is one of its own by default.
    """
    options.setdefault("address", loopback_address())
    if not answers:
        options["answer"] = 180 if make == "pjsua" else "manual"
    file = write_words(folder, variant)
    result = _MAKES[make](folder / make, user, play=file, **options)
    result.words, result.words_file = speech(SPEECH_S, variant), file
    return result
