"""The load generator's HTTP/2: frames and headers, byte by byte."""

from __future__ import annotations

import pytest

from bench import frames


def test_frames_are_found_however_the_bytes_are_cut() -> None:
    """What is not whole yet is kept for the next time."""
    sent = frames.frame(frames.DATA, frames.END_STREAM, 7, b"x" * 70_000) + frames.frame(frames.PING, 0, 0, b"12345678")
    for cut in (0, 1, 8, 9, 10, 70_008, 70_009, 70_010, len(sent)):
        first, rest = frames.split(sent[:cut])
        second, nothing = frames.split(rest + sent[cut:])
        assert nothing == b""
        assert [each[:3] for each in first + second] == [(frames.DATA, frames.END_STREAM, 7), (frames.PING, 0, 0)]
        assert (first + second)[0][3] == b"x" * 70_000


def test_literals_of_all_three_kinds_are_read() -> None:
    """Without indexing, never indexed, with indexing; the last is read though nothing is remembered of it."""
    name, value = b"\x0bgrpc-status", b"\x025!"
    for kind in (b"\x00", b"\x10", b"\x40"):
        assert frames.parse_block(kind + name + value) == {"grpc-status": "5!"}


def test_static_entries_and_a_table_size_are_read() -> None:
    assert frames.parse_block(b"\x20\x88\x5f\x10application/grpc") == {
        ":status": "200",
        "content-type": "application/grpc",
    }


def test_an_entry_of_a_dynamic_table_is_not_guessed() -> None:
    """The server was told that there is no table: to go on would be to make up a status."""
    with pytest.raises(frames.BrokenFrames, match="told not to"):
        frames.parse_block(b"\xbe")


def test_a_long_value_has_a_length_of_several_bytes() -> None:
    """RFC 7541, 5.1: 127 and then groups of seven bits."""
    assert frames.parse_block(b"\x00\x01a\x7f\xd3\x01" + b"v" * 338) == {"a": "v" * 338}


def test_a_message_is_its_length_and_its_bytes() -> None:
    assert frames.message(b"abc") == b"\x00\x00\x00\x00\x03abc"
