from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from itertools import count

import pytest

from adapters.sip.dialogs.notifier import MAX_PER_USER, Notifier
from adapters.sip.errors import PeerError
from adapters.sip.protection.access import AccessPolicy, Admitted, Trunk
from adapters.sip.syntax.message import Request, Response, build_response, parse_message
from adapters.sip.transactions.transaction import Flow
from tests.sip_link import Link, Node

PHONE = ("192.0.2.9", 5060)
_branches = count(1)


class Lamp:
    """A package with one word of state for each resource."""

    content_type = "text/plain"

    def __init__(self) -> None:
        self.state = "dark"

    def admit(self, subscriber: Admitted, resource: str) -> None:
        if resource == "secret":
            raise PeerError("no", status=403)

    def document(self, resource: str, version: int) -> bytes:
        return f"{resource} is {self.state} {version}".encode()


class Scene:
    """A notifier, and a phone of raw messages that is a trunk and so needs no password."""

    def __init__(self, passwords: Mapping[str, str] | None = None) -> None:
        self.node = Node("192.0.2.1", trunks={} if passwords else {"t": "192.0.2.0/24"}, passwords=passwords or {})
        self.link = Link(self.node)
        self.lamp = Lamp()
        self.notifier = self.node.endpoint.notifier = Notifier(self.node.endpoint, {"lamp": self.lamp})
        self.cseq = 0
        self.answer_notify: int | None = 200
        self.retry_after = ""

    def ask(self, method: str = "SUBSCRIBE", *, to_tag: str = "", call_id: str = "c1", **headers: str) -> Response:
        self.cseq += 1
        user = headers.pop("resource", "desk")
        request = Request.build(
            method,
            f"sip:{user}@192.0.2.1",
            via=f"SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK{next(_branches)}",
            from_="<sip:bob@pbx.test>;tag=bob",
            to=f"<sip:{user}@pbx.test>" + (f";tag={to_tag}" if to_tag else ""),
            call_id=call_id,
            cseq=self.cseq,
        )
        request.set("contact", "<sip:bob@192.0.2.9>")
        headers.setdefault("event", "lamp")
        for name, value in headers.items():
            if value:
                request.set(name.replace("_", "-"), value)
        self.node.carry_out(self.node.endpoint.on_message(request.serialise(), Flow("udp", 0, *PHONE), self.link.now))
        return [m for m in self.sent() if isinstance(m, Response) and m.cseq.number == self.cseq][-1]

    def sent(self) -> list[Request | Response]:
        return [parse_message(s.data) for _, s in self.link.sent if (s.flow.host, s.flow.port) == PHONE]

    def notified(self) -> list[tuple[str, str]]:
        """Answer the NOTIFYs that have not been, and return what each new one told."""
        told: list[tuple[str, str]] = []
        while True:
            waiting = [m for m in self.sent() if isinstance(m, Request) and m.method == "NOTIFY"]
            self.link.sent.clear()
            if not waiting:
                return told
            for request in {m.cseq.number: m for m in waiting}.values():
                told.append(((request.get("subscription-state") or ""), request.body.decode()))
                if self.answer_notify is not None:
                    response = build_response(request, self.answer_notify)
                    if self.retry_after:
                        response.set("retry-after", self.retry_after)
                    self.node.carry_out(
                        self.node.endpoint.on_message(response.serialise(), Flow("udp", 0, *PHONE), self.link.now)
                    )

    def change(self, state: str) -> None:
        self.lamp.state = state
        self.notifier.change("lamp", "desk", self.link.now)
        self.node.carry_out(self.node.endpoint.effects())

    def wait(self, seconds: float) -> None:
        self.link.run(self.link.now + seconds)


def test_subscriber_is_told_at_once_and_of_each_change() -> None:
    scene = Scene()
    answer = scene.ask(expires="600")
    assert (answer.status, answer.get("expires")) == (200, "600")
    assert answer.to.tag
    assert answer.get("contact")
    assert scene.notified() == [("active;expires=600", "desk is dark 0")]
    scene.wait(10)
    scene.change("lit")
    assert scene.notified() == [("active;expires=590", "desk is lit 1")]
    assert scene.notifier.watches("lamp", "desk")
    assert not scene.notifier.watches("lamp", "door")


def test_changes_that_come_fast_are_told_once_a_second_by_the_last() -> None:
    scene = Scene()
    scene.ask(expires="600")
    scene.notified()
    for state in ("a", "b", "c"):
        scene.change(state)
    assert scene.notified() == []
    scene.wait(1.0)
    assert [body for _, body in scene.notified()] == ["desk is c 1"]
    scene.wait(5)
    assert scene.notified() == []


def test_notify_waits_for_the_answer_to_the_one_before() -> None:
    scene = Scene()
    scene.answer_notify = None
    scene.ask(expires="600")
    scene.notified()
    scene.wait(3)
    scene.change("lit")
    assert {body for _, body in scene.notified()} <= {"desk is dark 0"}


def test_refresh_and_the_end_on_the_subscribers_word() -> None:
    scene = Scene()
    tag = scene.ask(expires="600").to.tag or ""
    scene.notified()
    scene.wait(500)
    assert scene.ask(to_tag=tag, expires="300").status == 200
    assert scene.notified() == [("active;expires=300", "desk is dark 1")]
    assert scene.ask(to_tag=tag, expires="0").get("expires") == "0"
    assert scene.notified() == [("terminated;reason=timeout", "desk is dark 2")]
    assert len(scene.notifier) == 0
    assert scene.ask(to_tag=tag, expires="300").status == 481
    assert not scene.notifier.watches("lamp", "desk")


def test_subscription_that_is_not_refreshed_ends() -> None:
    scene = Scene()
    scene.ask(expires="60")
    scene.notified()
    scene.wait(61)
    assert scene.notified() == [("terminated;reason=timeout", "desk is dark 1")]
    assert len(scene.notifier) == 0


def test_state_is_fetched_without_a_subscription() -> None:
    scene = Scene()
    scene.ask(expires="0")
    assert scene.notified() == [("terminated;reason=timeout", "desk is dark 0")]
    assert len(scene.notifier) == 0


@pytest.mark.parametrize("status", [481, 404, 500, None])
def test_subscriber_who_is_gone_is_forgotten(status: int | None) -> None:
    scene = Scene()
    scene.answer_notify = status
    scene.ask(expires="600")
    scene.notified()
    scene.wait(33)
    assert len(scene.notifier) == 0
    scene.wait(100)
    assert scene.node.endpoint.transactions == 0
    assert scene.node.endpoint.deadline() is None or scene.node.endpoint.deadline() <= 700  # type: ignore[operator]  # a number


def test_subscriber_who_asks_for_a_pause_gets_it() -> None:
    scene = Scene()
    scene.answer_notify, scene.retry_after = 503, "5"
    scene.ask(expires="600")
    scene.notified()
    scene.answer_notify = 200
    scene.wait(4)
    assert scene.notified() == []
    scene.wait(2)
    assert [body for _, body in scene.notified()] == ["desk is dark 1"]
    assert len(scene.notifier) == 1


def test_everybody_is_told_at_the_end() -> None:
    scene = Scene()
    scene.ask(expires="600")
    scene.notified()
    scene.notifier.end_all("deactivated", scene.link.now)
    scene.node.carry_out(scene.node.endpoint.effects())
    assert scene.notified() == [("terminated;reason=deactivated", "desk is dark 1")]
    assert len(scene.notifier) == 0


def test_those_who_are_gone_watch_nothing_and_are_not_watched() -> None:
    scene = Scene()
    scene.ask(expires="600")
    scene.ask(expires="600", call_id="c2", resource="door")
    scene.notified()
    scene.notifier.keep_only(frozenset({"desk"}), scene.link.now)
    scene.node.carry_out(scene.node.endpoint.effects())
    assert scene.notified() == [("terminated;reason=noresource", "door is dark 1")]
    assert len(scene.notifier) == 1


@pytest.mark.parametrize(
    ("headers", "status", "header"),
    [
        ({"event": "weather"}, 489, ("allow-events", "lamp")),
        ({"event": ""}, 489, ("allow-events", "lamp")),
        ({"expires": "5"}, 423, ("min-expires", "60")),
        ({"accept": "application/pidf+xml"}, 406, None),
        ({"resource": "secret"}, 403, None),
        ({"contact": "garbage"}, 400, None),
        ({"accept": "text/*"}, 200, None),
        ({"expires": "99999999"}, 200, ("expires", "7200")),
        ({"expires": ""}, 200, ("expires", "3600")),
    ],
)
def test_what_is_refused_and_what_is_not(headers: dict[str, str], status: int, header: tuple[str, str] | None) -> None:
    scene = Scene()
    answer = scene.ask(**headers)
    assert answer.status == status
    if header is not None:
        assert answer.get(header[0]) == header[1]
    assert len(scene.notifier) == (status == 200)


def test_within_the_dialog_only_what_belongs_there() -> None:
    scene = Scene()
    tag = scene.ask(expires="600").to.tag or ""
    scene.notified()
    assert scene.ask("BYE", to_tag=tag).status == 405
    assert scene.ask(to_tag=tag, event="lamp;id=7").status == 489
    assert scene.ask(to_tag="wrong").status == 481
    scene.cseq -= 3
    assert scene.ask(to_tag=tag, call_id="c1", expires="61").status == 500
    assert scene.ask("NOTIFY", call_id="c7").status == 481
    assert scene.ask("REFER", call_id="c8").status == 405
    assert len(scene.notifier) == 1


def test_strangers_are_asked_for_their_password() -> None:
    scene = Scene({"bob": "secret"})
    assert scene.ask().status == 401
    assert len(scene.notifier) == 0


def test_subscriptions_of_one_user_are_limited() -> None:
    scene = Scene()
    for number in range(MAX_PER_USER):
        assert scene.ask(call_id=f"n{number}").status == 200
    assert scene.ask(call_id="one-too-many").status == 503
    assert len(scene.notifier) == MAX_PER_USER


def test_draining_takes_no_subscription() -> None:
    scene = Scene()
    scene.node.endpoint.draining = True
    assert scene.ask().status == 503


def test_options_names_the_packages() -> None:
    scene = Scene()
    assert scene.ask("OPTIONS", event="").get("allow-events") == "lamp"


def test_policy_that_knows_nobody_lets_nobody_in() -> None:
    scene = Scene()
    trunk = Trunk("u", (ipaddress.ip_network("198.51.100.0/24"),))
    scene.node.endpoint.policy = AccessPolicy([trunk], {}, scene.node.endpoint.policy._verifier)
    assert scene.ask().status == 401
