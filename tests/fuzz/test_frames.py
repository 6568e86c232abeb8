"""HTTP/2 that no sound client speaks: every connection is ended, and beside them a client goes on paying.

`make test` sends a few frames, always the same; `make test-fuzz` many, and others every time. FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections import Counter
from contextlib import ExitStack
from itertools import count
from random import Random
from typing import Final

import pytest
from frames import ATTACKS, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, call, frame, hpack, message, opened
from target import ANSWERED_WITHIN_S, Target, leak

RUNS: Final = int(os.environ.get("FUZZ_RUNS", "2000"))
SEED: Final = int(os.environ.get("FUZZ_SEED", "1" if RUNS <= 2_000 else str(secrets.randbits(32))))

HALF_OPEN: Final = 200
"""Connections at once that begin and do not go on."""


def test_frames_that_are_wrong_harm_nobody(target: Target) -> None:
    """Of each kind of attack the same share of frames, one connection after the other."""
    sent: Counter[str] = Counter()
    with target.paying() as took:
        for name in ATTACKS:
            for number in count():
                sent[name] += attack(target, name, Random(f"{SEED}/{name}/{number}"))
                if sent[name] * len(ATTACKS) >= RUNS:
                    break
    target.require_unharmed()
    assert max(took) < ANSWERED_WITHIN_S
    print(f"\n{sent.total():,} frames, seed {SEED}: {dict(sent)}; beside them {len(took):,} payments")


def attack(target: Target, name: str, random: Random) -> int:
    """One connection, which the server has to end once the client has said all; return how many frames were sent."""
    sent, said = 0, b""
    with socket.create_connection((target.host, target.port), ANSWERED_WITHIN_S) as connection:
        connection.settimeout(ANSWERED_WITHIN_S)
        try:
            for piece in ATTACKS[name](random):
                connection.sendall(piece)
                sent += 1
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65_536):
                said += data
        except TimeoutError:
            raise AssertionError(f"FUZZ_SEED={SEED} {name}: the connection is not ended") from None
        except OSError:
            pass  # Ended by the server, in the middle of it: as it should be.
    assert leak(said) is None, f"FUZZ_SEED={SEED} {name}: the answer shows the inside of the server: {leak(said)!r}"
    return sent


@pytest.mark.parametrize(
    "path", [b"/\xff\xfe/\x00", b"\xff", b"/ledger.v1.AccountService/\xc3", b"/" + b"\x80" * 4_000]
)
def test_a_method_whose_name_is_not_utf_8_is_unimplemented(target: Target, path: bytes) -> None:
    """It used to stop the server: the port was closed, and everybody cut off, while the process went on."""
    with socket.create_connection((target.host, target.port), ANSWERED_WITHIN_S) as connection:
        headers = frame(HEADERS, END_HEADERS, 1, hpack(call(path)))
        connection.sendall(opened() + headers + frame(DATA, END_STREAM, 1, message(b"")))
        said = b""
        while b"grpc-status" not in said:
            data = connection.recv(65_536)
            assert data, said
            said += data
    assert b"grpc-status\x0212" in said
    target.require_unharmed()


def test_nobody_writes_into_the_log(target: Target) -> None:
    """A farewell with a text in it was logged as it came: line feeds, and what moves the cursor of a terminal, too."""
    farewell = struct.pack(">II", 0, 77) + b"\x1b[2J\n2026-01-01T00:00:00Z [info     ] forged"
    with socket.create_connection((target.host, target.port), ANSWERED_WITHIN_S) as connection:
        headers = [(name, value) for name, value in call() if name != b"te"] + [
            (b"te", b"gzip"),
            (b"grpc-timeout", b"x"),
        ]
        connection.sendall(opened() + frame(HEADERS, END_HEADERS | END_STREAM, 1, hpack(headers)))
        connection.sendall(frame(GOAWAY, 0, 0, farewell))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    target.require_unharmed()
    assert "forged" not in target.server.log
    assert "grpc-timeout" not in target.server.log


@pytest.mark.parametrize("begun", [0, 10, 24, 33], ids=["nothing", "a part of the preface", "the preface", "settings"])
def test_connections_that_are_left_half_open_keep_nobody_out(target: Target, begun: int) -> None:
    """Hundreds of them, for as long as they like."""
    with ExitStack() as held:
        for _ in range(HALF_OPEN):
            connection = held.enter_context(socket.create_connection((target.host, target.port), ANSWERED_WITHIN_S))
            connection.sendall(opened()[:begun])
        for _ in range(5):
            target.pay()
    target.require_unharmed()
