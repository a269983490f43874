"""The command `murima`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

DEFAULT_DATA = Path("data")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="murima",
        description="Telephony and contact-centre engine: SIP, media, routing, recording, HTTP API.",
        epilog="Guides: docs/ in the source tree. Each command explains itself: murima COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"murima {version('murima')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="run the engine in the foreground",
        description="Run the engine and its media workers in the foreground. "
        "SIGTERM or Ctrl-C drains and stops; SIGHUP reloads the configuration.",
    )
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration document (YAML)")
    serve.add_argument(
        "--data",
        type=Path,
        default=DEFAULT_DATA,
        metavar="DIR",
        help="recordings, database, journal (default: ./data)",
    )

    check = commands.add_parser(
        "check",
        help="check a configuration document",
        description="Check a configuration document. Exit status 0 when it can be served, 1 when it has errors.",
    )
    check.add_argument("file", type=Path, metavar="FILE")

    doctor = commands.add_parser(
        "doctor",
        help="check this machine: ports, permissions, tools",
        description="Check whether this machine can run murima: ports, permissions, limits, tools. "
        "Exit status 1 when something must be mended first.",
    )
    doctor.add_argument("--config", type=Path, metavar="FILE", help="check the ports and files of this document too")
    doctor.add_argument("--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="default: ./data")

    call = commands.add_parser(
        "call",
        help="make one test call",
        description="Call a SIP address, play a file into the call, record what is heard, print what happens. "
        "Exit status 0 when the call was answered and ended normally.",
    )
    call.add_argument("uri", metavar="URI", help="whom to call, like sip:500@127.0.0.1:5060")
    call.add_argument("--play", type=Path, metavar="FILE", help="audio file to play once answered")
    call.add_argument("--record", type=Path, metavar="FILE", help="write what is heard to this WAV file")
    call.add_argument("--dtmf", default="", metavar="DIGITS", help="keys to press once answered (0-9 * # A-D)")
    call.add_argument(
        "--duration",
        type=float,
        metavar="SECONDS",
        help="hang up this long after the answer (default: after the file, else when the other side does)",
    )
    call.add_argument("--caller", default="murima", metavar="USER", help="our number, as the other side sees it")
    call.add_argument("--name", default="", metavar="NAME", help="our display name")
    call.add_argument(
        "--address", default="127.0.0.4", metavar="IP", help="local address to call from (default: 127.0.0.4)"
    )

    sip = commands.add_parser("sip", help="look at SIP traffic: murima sip trace", description="Look at SIP traffic.")
    sip_commands = sip.add_subparsers(dest="sip_command", required=True, metavar="COMMAND")
    trace = sip_commands.add_parser(
        "trace",
        help="draw the messages of a live or recent call",
        description="Draw the SIP messages of live and recent calls as a ladder diagram, or write them as a capture "
        "file. Without --call and --number, list the calls. Credentials and keys pressed are not shown.",
    )
    which = trace.add_mutually_exclusive_group()
    which.add_argument("--call", metavar="ID", help="the call with this id (ours, or a SIP Call-ID)")
    which.add_argument("--number", metavar="N", help="calls from or to this number")
    trace.add_argument("--full", action="store_true", help="print each message whole")
    trace.add_argument("--pcap", type=Path, metavar="FILE", help="write a capture file for Wireshark or sngrep instead")
    trace.add_argument("--limit", type=_count, default=20, metavar="N", help="at most so many calls (default: 20)")
    trace.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="data folder of the engine (default: ./data)"
    )

    password = commands.add_parser(
        "password",
        help="make the hashes of a password for the configuration",
        description="Ask for a password (or read one line from a pipe) and print what to write in the configuration "
        "instead of it.",
    )
    password.add_argument("--agent", metavar="ID", help="for this agent: SIP hashes (HA1), too")
    password.add_argument("--domain", metavar="NAME", help="the document's domain, part of the SIP hashes")

    demo = commands.add_parser(
        "demo",
        help="serve a configuration with synthetic callers and agents",
        description="Serve the sample configuration (or FILE) and keep synthetic callers and agents busy, "
        "with recorded speech, in a live table. Ctrl-C stops it.",
    )
    demo.add_argument("--config", type=Path, metavar="FILE", help="default: the shipped sample")
    demo.add_argument("--data", type=Path, metavar="DIR", help="keep the data here (default: a temporary folder)")
    demo.add_argument("--duration", type=float, metavar="SECONDS", help="stop by itself after this time")
    demo.add_argument("--seed", type=int, metavar="N", help="repeat the same sequence of people")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 500):
        raise argparse.ArgumentTypeError("give a number from 1 to 500")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    match arguments.command:
        case "serve":
            return _serve(arguments)
        case "check":
            return _check(arguments)
        case "doctor":
            return _doctor(arguments)
        case "call":
            return _call(arguments)
        case "sip":
            return _trace(arguments)
        case "password":
            return _password(arguments)
        case _:
            return _demo(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from engine import log
    from engine.supervisor import serve

    log.configure(os.environ.get("MURIMA_LOG_LEVEL", "info"))
    return serve(arguments.config, arguments.data)


def _check(arguments: argparse.Namespace) -> int:
    from config.check import check

    status, text = check(arguments.file)
    print(text, file=sys.stdout if status == 0 else sys.stderr)
    return status


def _doctor(arguments: argparse.Namespace) -> int:
    from engine.doctor import Verdict, doctor, render

    findings = doctor(arguments.config, arguments.data)
    print(render(findings))
    return 1 if any(finding.verdict is Verdict.FAIL for finding in findings) else 0


def _call(arguments: argparse.Namespace) -> int:
    from engine.start.phones import make_test_call
    from engine.telephony import is_dtmf
    from engine.testphone import CallPlan

    if arguments.play is not None and not arguments.play.is_file():
        return _usage(f"there is no file {arguments.play} to play")
    if arguments.record is not None and not arguments.record.absolute().parent.is_dir():
        return _usage(f"there is no folder {arguments.record.absolute().parent} to record into")
    if not is_dtmf(arguments.dtmf):
        return _usage(f"{arguments.dtmf!r} has characters that no phone key has; use 0-9 * # A-D")
    plan = CallPlan(
        uri=arguments.uri if arguments.uri.lower().startswith(("sip:", "sips:")) else f"sip:{arguments.uri}",
        caller_number=arguments.caller,
        caller_name=arguments.name,
        play=arguments.play,
        record=arguments.record,
        dtmf=arguments.dtmf,
        duration_s=arguments.duration,
    )
    return asyncio.run(make_test_call(plan, arguments.address))


def _trace(arguments: argparse.Namespace) -> int:
    from engine.trace_command import Wanted, show

    wanted = Wanted(arguments.call, arguments.number, arguments.full, arguments.pcap, arguments.limit)
    return show(arguments.data, wanted, sys.stdout)


def _password(arguments: argparse.Namespace) -> int:
    from config.secrets import ALGORITHMS, HA1_KEYS, ha1, hash_web_password

    if (arguments.agent is None) != (arguments.domain is None):
        return _usage("SIP hashes need both --agent and --domain")
    if sys.stdin.isatty():
        password = getpass.getpass("password: ")
        if password != getpass.getpass("once more: "):
            return _usage("the two are not the same")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not password:
        return _usage("an empty password protects nothing")
    print("password:")
    print(f'  argon2id: "{hash_web_password(password)}"')
    if arguments.agent is not None:
        hashes = (f"{HA1_KEYS[name]}: {ha1(arguments.agent, arguments.domain, password, name)}" for name in ALGORITHMS)
        print(f"  ha1: {{{', '.join(hashes)}}}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from engine.start.phones import run_demo

    try:
        return asyncio.run(run_demo(arguments.config, arguments.data, arguments.duration, arguments.seed))
    except KeyboardInterrupt:  # the way to end it; all is closed by now
        return 0


def _usage(problem: str) -> int:
    print(f"murima: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
