"""Every input to a subscription in every state, and the documents that it brings."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.dialogs.notifier import Notifier
from adapters.sip.protection.access import Admitted
from adapters.sip.registration.registrar import Registrar
from adapters.sip.syntax.event_documents import DialogFacts, dialog_info, message_summary, presence, reginfo
from adapters.sip.syntax.message import Request, Response, build_response, parse_message
from tests.sip_link import Link, Node, new_token

HERE, PEER = "192.0.2.2", "192.0.2.4"


class Words:
    """A package with a word of state."""

    content_type = "text/plain"

    def admit(self, subscriber: Admitted, resource: str) -> None: ...

    def document(self, resource: str, version: int) -> bytes:
        return b"word %d" % version


class Watch:
    """One subscriber, its messages written by hand."""

    def __init__(self) -> None:
        self.node = Node(HERE, trunks={"carrier": PEER}, registrar=Registrar())
        self.link = Link(self.node)
        self.notifier = self.node.endpoint.notifier = Notifier(self.node.endpoint, {"words": Words()})
        self.call_id = new_token()
        self.to = "<sip:desk@pbx>"
        self.number = 10

    def ask(self, method: str = "SUBSCRIBE", *, event: str = "words", expires: str = "600", step: int = 1) -> int:
        self.number += step
        request = Request.build(
            method,
            f"sip:desk@{HERE}",
            via=f"SIP/2.0/UDP {PEER};branch=z9hG4bK{new_token()}",
            from_="<sip:600@pbx>;tag=f",
            to=self.to,
            call_id=self.call_id,
            cseq=self.number,
        )
        request.set("contact", f"<sip:600@{PEER}>")
        request.set("event", event)
        request.set("expires", expires)
        answers = [parse_message(reply) for reply in self.link.raw(self.node, request.serialise(), PEER)]
        (final,) = [reply for reply in answers if isinstance(reply, Response)]
        if final.to.tag and final.status == 200:
            self.to = final.headers["to"][0]
        return final.status

    def answer(self, status: int, **headers: str) -> None:
        """Answer our latest NOTIFY."""
        for _, send in reversed(self.link.sent):
            message = parse_message(send.data)
            if isinstance(message, Request) and message.method == "NOTIFY":
                response = build_response(message, status)
                for name, value in headers.items():
                    response.set(name.replace("_", "-"), value)
                self.link.raw(self.node, response.serialise(), PEER)
                return

    def change(self) -> None:
        self.notifier.change("words", "desk", self.link.now)
        self.node.carry_out(self.node.endpoint.effects())


def none() -> Watch:
    return Watch()


def told() -> Watch:
    watch = Watch()
    assert watch.ask() == 200
    watch.answer(200)
    return watch


def telling() -> Watch:
    """The first NOTIFY waits for its answer."""
    watch = Watch()
    assert watch.ask() == 200
    return watch


def ending() -> Watch:
    """Unsubscribed; the last NOTIFY waits for its answer."""
    watch = told()
    watch.link.run(2.0)
    assert watch.ask(expires="0") == 200
    return watch


STATES: dict[str, Callable[[], Watch]] = {"none": none, "told": told, "telling": telling, "ending": ending}
# Status of the answer (0: there is none to give), and whether the subscription is there afterwards, by state.
INPUTS: dict[str, tuple[Callable[[Watch], int | None], dict[str, tuple[int, bool]]]] = {
    "subscribe": (
        lambda watch: watch.ask(),
        {"none": (200, True), "told": (200, True), "telling": (200, True), "ending": (481, True)},
    ),
    "unsubscribe": (
        lambda watch: watch.ask(expires="0"),
        {"none": (200, True), "told": (200, True), "telling": (200, True), "ending": (481, True)},
    ),
    "too brief": (
        lambda watch: watch.ask(expires="5"),
        {"none": (423, False), "told": (423, True), "telling": (423, True), "ending": (481, True)},
    ),
    "another event": (
        lambda watch: watch.ask(event="other"),
        {"none": (489, False), "told": (489, True), "telling": (489, True), "ending": (481, True)},
    ),
    "old number": (
        lambda watch: watch.ask(step=-5),
        {"none": (200, True), "told": (500, True), "telling": (500, True), "ending": (481, True)},
    ),
    "BYE": (
        lambda watch: watch.ask("BYE"),
        {"none": (481, False), "told": (405, True), "telling": (405, True), "ending": (481, True)},
    ),
    "NOTIFY": (
        lambda watch: watch.ask("NOTIFY"),
        {"none": (481, False), "told": (405, True), "telling": (405, True), "ending": (481, True)},
    ),
    "change": (
        lambda watch: watch.change(),
        {"none": (0, False), "told": (0, True), "telling": (0, True), "ending": (0, True)},
    ),
    "taken": (
        lambda watch: watch.answer(200),
        {"none": (0, False), "told": (0, True), "telling": (0, True), "ending": (0, False)},
    ),
    "provisional": (
        lambda watch: watch.answer(180),
        {"none": (0, False), "told": (0, True), "telling": (0, True), "ending": (0, True)},
    ),
    "gone": (
        lambda watch: watch.answer(481),
        {"none": (0, False), "told": (0, True), "telling": (0, False), "ending": (0, False)},
    ),
    "busy": (
        lambda watch: watch.answer(503, retry_after="10"),
        {"none": (0, False), "told": (0, True), "telling": (0, True), "ending": (0, False)},
    ),
    "silence": (
        lambda watch: watch.link.run(watch.link.now + 33.0),
        {"none": (0, False), "told": (0, True), "telling": (0, False), "ending": (0, False)},
    ),
    "expiry": (
        lambda watch: watch.link.run(watch.link.now + 640.0),
        {"none": (0, False), "told": (0, False), "telling": (0, False), "ending": (0, False)},
    ),
    "end": (
        lambda watch: watch.notifier.end_all("deactivated", watch.link.now),
        {"none": (0, False), "told": (0, True), "telling": (0, True), "ending": (0, True)},
    ),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("happens", INPUTS)
def test_every_input_has_its_outcome_in_every_state_of_a_subscription(state: str, happens: str) -> None:
    watch = STATES[state]()
    act, outcomes = INPUTS[happens]
    assert (act(watch) or 0, len(watch.notifier) == 1) == outcomes[state]
    watch.node.carry_out(watch.node.endpoint.effects())
    watch.notifier.end_all("deactivated", watch.link.now)
    watch.node.carry_out(watch.node.endpoint.effects())
    watch.link.run(watch.link.now + 700.0)
    assert (len(watch.notifier), watch.node.endpoint.transactions) == (0, 0)
    assert watch.notifier.deadline() is None


ANYTHING = st.text(max_size=20)


@given(ANYTHING, ANYTHING, ANYTHING, st.lists(st.tuples(ANYTHING, ANYTHING, st.floats(-9, 9)), max_size=2))
def test_documents_are_xml_whatever_the_names(
    entity: str, name: str, remote: str, contacts: list[tuple[str, str, float]]
) -> None:
    facts = DialogFacts("d1", "recipient", "early", remote, name, name, entity, remote)
    (dialog,) = ET.fromstring(dialog_info(entity, [facts], 3))
    assert dialog.attrib["direction"] == "recipient"
    assert len(dialog) == 3
    found = ET.fromstring(presence(entity, name, is_open=True, activity="away", note=remote))
    assert [child.tag.rpartition("}")[2] for child in found] == ["tuple", "note", "person"]
    (registration,) = ET.fromstring(reginfo(entity, contacts, 1))
    assert len(registration) == len(contacts)


def test_message_summary_is_three_lines() -> None:
    assert message_summary("sip:a@b", 2, 1).count(b"\r\n") == 3
