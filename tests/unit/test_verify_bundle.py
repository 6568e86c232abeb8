"""The bundle and its verifier: an honest one passes, and whatever was done to it since is found, and where.

The verifier is loaded as a program of its own, which it is: it shares no line with what writes bundles.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from domain import (
    START,
    Ledger,
    altered,
    authorize,
    capture,
    capture_and_keep,
    close,
    expire,
    freeze,
    increment,
    leg,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)
from hypothesis import given
from hypothesis import strategies as st

from ledger.audit import merkle
from ledger.audit.bundle import BundleWriter, event_line
from ledger.audit.leaf import leaf_data
from ledger.audit.note import PublicKey, SigningKey, TreeHead, read_head, sign
from ledger.domain.account import Account
from ledger.domain.aggregate import Stamp
from ledger.domain.commands import OpenAccount
from ledger.domain.events import TOPICS, AccountKind
from ledger.upcasters import EventMapper

PROGRAM: Final = Path(__file__).parents[2] / "contrib" / "verify_bundle.py"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ORIGIN: Final = "ledger/main"
KEY, NEXT_KEY, STRANGER = (
    SigningKey(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes([number] * 32))) for number in (1, 2, 3)
)


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("verify_bundle", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["verify_bundle"] = module
    spec.loader.exec_module(module)
    return module


verifier: Final = _loaded()


# --- given: a log, and what can be done to it ------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the log; `recorded_at` in microseconds."""

    position: int
    stream: str
    version: int
    topic: str
    recorded_at: int
    state: bytes

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.state)
        return fields

    def having(self, **changes: Any) -> Row:
        """The row with other columns, or other fields in its state: `after__posted` is `posted` in `after`."""
        columns = {name: value for name, value in changes.items() if name in self._fields}
        fields = self.fields
        for path in changes.keys() - columns.keys():
            *parents, name = path.split("__")
            where = fields
            for each in parents:
                where = where[each]
            where[name] = changes[path]
        return self._replace(**{"state": canonical(fields)} | columns)


def canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@cache
def log(alice: int = 1_000) -> tuple[Row, ...]:
    """Every kind of event, and text that is not ASCII."""
    ledger = Ledger(alice=alice, shop=0)
    for command in (
        open_account("bank-JPY", currency_code="JPY", kind=AccountKind.EXTERNAL),
        open_account("yumi", currency_code="JPY", limit=50, metadata={"stadt": "Zürich ☕", "a\tb": '"'}),
        authorize(500, payment_id="p1", reference="Bestellung Nº 17"),
        increment("i1", 600, payment_id="p1"),
        capture_and_keep("c1", 200, payment_id="p1"),
        capture("c2", 100, payment_id="p1"),
        refund("r1", 50, payment_id="p1"),
        authorize(70, payment_id="p2"),
        void("p2", reason="out of stock"),
        authorize(30, payment_id="p3", hold_for=timedelta(minutes=1)),
        authorize(10**9, payment_id="p4"),
        transfer("t1", leg("alice", "shop", 5), leg("bank-JPY", "yumi", 7, "JPY")),
        transfer("t2", leg("alice", "shop", 10**9)),
        set_limit("alice", 77),
        open_account("empty"),
        freeze("empty", reason="überprüft"),
        unfreeze("empty"),
        close("empty"),
    ):
        ledger.wait(seconds=1)
        ledger.do(command)
    ledger.wait(hours=1)
    ledger.do(expire("p3"))
    mapper = EventMapper()
    stored = [(mapper.to_stored_event(each), each.timestamp) for each in ledger.book.events]
    return tuple(
        Row(position, e.originator_id, e.originator_version, e.topic, microseconds(at), e.state)
        for position, (e, at) in enumerate(stored, 1)
    )


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def root(rows: Sequence[Row]) -> bytes:
    leaves = (
        leaf_data(*row[:4], EPOCH + timedelta(microseconds=row.recorded_at), row.state)  # type: ignore[arg-type]
        for row in rows
    )
    return merkle.root_of(map(merkle.leaf_hash, leaves))


def head(rows: Sequence[Row], *keys: SigningKey, introduces: SigningKey | None = None) -> str:
    """A signed head of all these rows."""
    next_key = None if introduces is None else introduces.public
    return sign(TreeHead(ORIGIN, len(rows), root(rows), next_key).text, keys or [KEY])


def heads_of(rows: Sequence[Row], *sizes: int) -> dict[int, list[str]]:
    return {size: [head(rows[:size])] for size in (*sizes, len(rows))}


def bundle(
    rows: Sequence[Row] | None = None,
    heads: dict[int, list[str]] | None = None,
    *,
    breaks: dict[int, list[str]] | None = None,
    keys: Sequence[SigningKey] = (KEY,),
) -> bytes:
    """A bundle of parts of some 4 kB. `heads` and `breaks` are notes by the position that they stand after."""
    rows = log() if rows is None else rows
    heads = heads_of(rows, 2, 19) if heads is None else heads
    file = io.BytesIO()
    with BundleWriter(file, [str(key.public) for key in keys], part_least_bytes=4_000) as writer:
        for size in range(len(rows) + 1):
            writer.add_events(rows[max(0, size - 1) : size])
            for note in (breaks or {}).get(size, ()):
                writer.add_break(note)
            for note in heads.get(size, ()):
                writer.add_head(note)
        writer.end("main")
    return file.getvalue()


# --- when: it is verified --------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What came of it: where and what is wrong, or nothing is; and what a person is told."""

    wrong: str
    seen: Any

    @property
    def report(self) -> str:
        assert not self.wrong
        return "\n".join(verifier.report(self.seen))


def verified(data: bytes, *, trusted: SigningKey | None = None, kept: str | None = None, position: int = 0) -> Verdict:
    key = verifier.Key.from_text(str(trusted.public)) if trusted else None
    note = verifier.Note.from_text(kept) if kept else None
    seen = verifier.Verification(verifier.Bundle(io.BytesIO(data)), key, note, position)
    try:
        seen.run()
    except verifier.Wrong as error:
        return Verdict(f"{seen.where()}: {error}", seen)
    return Verdict("", seen)


def wrong(data: bytes, **asked: Any) -> str:
    """Where it is wrong, and what."""
    found = verified(data, **asked).wrong
    assert found, "it passed"
    return found


# --- an honest bundle passes -----------------------------------------------------------------------------------------


def test_an_honest_bundle_is_verified() -> None:
    """Of a log with every kind of event, in several parts."""
    assert {row.topic for row in log()} == set(TOPICS)
    data = bundle()
    assert len(members(data)) > 4

    report = verified(data, trusted=KEY).report

    assert f"{len(log())} events" in report
    assert "4 payments, 3 transfers, 6 accounts" in report
    assert "heads: 3," in report
    assert "--public-key" not in report


def test_a_bundle_of_an_empty_log_is_verified() -> None:
    """A ledger that signed a head of nothing."""
    assert "0 events" in verified(bundle([]), trusted=KEY).report


def test_without_a_key_it_says_what_that_proves() -> None:
    """Consistency with itself, and nothing more; and it shows the key that the bundle brings along."""
    report = verified(bundle()).report
    assert "agrees with itself" in report
    assert str(KEY.public) in report


def test_the_same_log_gives_the_same_bytes() -> None:
    """Nothing of the clock or of the machine is in it."""
    assert bundle() == bundle()


def test_a_bundle_is_a_tar_that_everybody_can_read() -> None:
    """With tools of one's own: tar, zcat, sha256sum."""
    data = bundle()
    found = dict(members(data))
    manifest = json.loads(found["manifest.json"])

    assert [each["name"] for each in manifest["members"]] == [*found][:-2]
    for each in manifest["members"]:
        assert each["sha256"] == sha256(found[each["name"]]).hexdigest()
        assert each["bytes"] == len(found[each["name"]])
    assert found["manifest.sha256"].split() == [sha256(found["manifest.json"]).hexdigest().encode(), b"manifest.json"]
    assert {name: manifest[name] for name in ("format", "ledger", "origin", "size")} == {
        "format": "bundle/1",
        "ledger": "main",
        "origin": ORIGIN,
        "size": len(log()),
    }
    assert manifest["head"] == head(log())
    events = [line for line in map(json.loads, lines_of(data)) if "position" in line]
    assert [each["stream"] for each in events] == [row.stream for row in log()]


def test_the_program_needs_nothing_of_ours() -> None:
    """Only the standard library and `cryptography`."""
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"))
    names = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names - sys.stdlib_module_names == {"cryptography"}


# --- two implementations say the same --------------------------------------------------------------------------------


@given(st.integers(1, 70), st.data())
def test_trees_and_proofs_are_those_of_the_ledger(size: int, data: st.DataObject) -> None:
    """Roots of every size, and the path from a leaf to each of them."""
    position = data.draw(st.integers(1, size))
    leaves = [sha256(bytes([number])).digest() for number in range(size)]
    tree = verifier.Tree(position)
    for count, each in enumerate(leaves, 1):
        tree.add(each)
        assert tree.root() == merkle.root_of(leaves[:count])
    path = [sibling for _, sibling in tree.joined().path]
    merkle.verify_inclusion(position - 1, size, leaves[position - 1], path, tree.root())


TEXT: Final = st.text(st.characters(exclude_categories=["Cs"]))
STAMP: Final = Stamp(START, actor="anonymous", correlation_id="test", command_position=1)


@given(
    st.integers(1, 2**63 - 1),
    TEXT,
    st.integers(-(2**63), 2**63 - 1),
    st.datetimes(timezones=st.just(UTC)),
    st.binary(),
)
def test_leaves_are_those_of_the_ledger(number: int, text: str, version: int, moment: datetime, state: bytes) -> None:
    """Whatever stands in the columns."""
    event = verifier.Event(number, text, version, text[::-1], microseconds(moment), state, {})
    assert verifier.leaf_hash(event) == merkle.leaf_hash(leaf_data(number, text, version, text[::-1], moment, state))


@given(st.dictionaries(TEXT, TEXT, max_size=5), TEXT)
def test_states_and_lines_have_the_form_that_the_verifier_knows(metadata: dict[str, str], text: str) -> None:
    """Whatever clients write, the ledger, the writer of bundles and the verifier spell it alike."""
    opened = Account.open(OpenAccount(account_id="alice", currency_code="EUR"), STAMP, [])
    assert opened.opening
    event = altered(opened.opening, metadata=metadata, correlation_id=text)
    state = EventMapper().to_stored_event(event).state
    assert verifier.parsed(state, "the state")["metadata"] == metadata
    line = event_line((1, text, 1, text[::-1], 7, state))
    assert verifier.Event.from_line(verifier.parsed(line[:-1], "the line"))[:6] == (1, text, 1, text[::-1], 7, state)


def test_keys_and_notes_are_those_of_the_ledger() -> None:
    """Each reads what the other means."""
    key = verifier.Key.from_text(str(KEY.public))
    assert (key.name, key.id) == (KEY.name, KEY.public.id)
    assert PublicKey.parse(key.text) == KEY.public
    note = verifier.Note.from_text(head(log(), KEY, NEXT_KEY))
    assert note.signed_by(key)
    assert not note.signed_by(verifier.Key.from_text(str(STRANGER.public)))
    read = read_head(head(log()), [KEY.public])
    assert verifier.Head.from_note(note, ORIGIN) == (read.size, read.root, "")
    introducing = head(log(), KEY, NEXT_KEY, introduces=NEXT_KEY)
    assert read_head(introducing, [KEY.public]).next_key == NEXT_KEY.public
    note = verifier.Note.from_text(introducing)
    assert verifier.Head.from_note(note, ORIGIN) == (read.size, read.root, str(NEXT_KEY.public))


@pytest.mark.parametrize(
    "text", ["", "ledger/main", "a+b+c", f"ledger/main+00000000+{str(KEY.public).split('+', 2)[2]}"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    """A key that was cut or mistyped."""
    with pytest.raises(verifier.Wrong):
        verifier.Key.from_text(text)


# --- damage ----------------------------------------------------------------------------------------------------------


def members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(each.name, archive.extractfile(each).read()) for each in archive]  # type: ignore[union-attr]


def packed(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of members, without a look at the manifest."""
    blocks = []
    for name, content in parts:
        blocks += verifier.tar_header(name, len(content)), content, bytes(-len(content) % 512)
    return b"".join(blocks) + bytes(1024)


def with_manifest(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """A bundle whose manifest was made anew, as whoever replaces a member would."""
    found = dict(parts)
    manifest = json.loads(found.pop("manifest.json")) | {
        "members": [
            {"bytes": len(content), "name": name, "sha256": sha256(content).hexdigest()}
            for name, content in found.items()
            if name != "manifest.sha256"
        ]
    }
    return with_text(found, canonical(manifest) + b"\n")


def with_text(parts: dict[str, bytes], manifest: bytes) -> bytes:
    """A bundle with this manifest, and its right hash."""
    hashed = f"{sha256(manifest).hexdigest()}  manifest.json\n".encode()
    others = [(name, content) for name, content in parts.items() if not name.startswith("manifest")]
    return packed([*others, ("manifest.json", manifest), ("manifest.sha256", hashed)])


def compressed(text: bytes, level: int = 6) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, 31)
    return deflater.compress(text) + deflater.flush()


def lines_of(data: bytes) -> list[bytes]:
    """The lines of all parts."""
    texts = [zlib.decompress(each, 31) for name, each in members(data) if name.startswith("part-")]
    return [line for text in texts for line in text.splitlines(keepends=True)]


def with_lines(change: Callable[[list[bytes]], object]) -> bytes:
    """A bundle whose lines were changed in one way, compressed again, and with a manifest made anew."""
    parts = dict(members(bundle()))
    lines = lines_of(bundle())
    change(lines)
    first, *_ = names = [name for name in parts if name.startswith("part-")]
    kept = {name: content for name, content in parts.items() if name not in names[1:]}
    return with_manifest((kept | {first: compressed(b"".join(lines))}).items())


def test_one_flipped_bit_anywhere_is_found() -> None:
    """In headers, in what is compressed, in what fills up blocks, in the manifest, at the end."""
    data, random = bundle(), Random(20261125)
    names = {name for name, _ in members(data)} | {"the beginning"}
    for _ in range(400):
        place = random.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        assert wrong(bytes(damaged), trusted=KEY).partition(":")[0].partition(",")[0] in names


def test_a_bundle_that_was_cut_is_found() -> None:
    """Wherever: at the end of a member, within one, within its header."""
    data, random = bundle(), Random(1)
    for length in (0, 1, 511, 512, 1024, len(data) - 1024, len(data) - 1, *random.sample(range(len(data)), 50)):
        assert "the file ends too early" in wrong(data[:length]) or "after it should come" in wrong(data[:length])


def test_a_bundle_that_goes_on_is_found() -> None:
    """A byte, a block, a whole second bundle."""
    for more in (b"\0", bytes(512), bundle()):
        assert "manifest.sha256: something follows after the end" in wrong(bundle() + more)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts.pop(1), "keys.txt: after it should come 'part-000001.jsonl.gz or manifest.json'"),
        (lambda parts: parts.pop(0), "the beginning: after it should come 'keys.txt'"),
        (lambda parts: parts.insert(2, parts[1]), "part-000001.jsonl.gz: after it should come 'part-000002.jsonl.gz"),
        (lambda parts: parts.insert(1, parts.pop(2)), "keys.txt: after it should come 'part-000001.jsonl.gz"),
        (lambda parts: parts.insert(0, parts[0]), "keys.txt: after it should come 'part-000001.jsonl.gz"),
        (lambda parts: parts.insert(1, ("note.txt", b"hi")), "keys.txt: after it should come 'part-000001.jsonl.gz"),
        (lambda parts: parts.pop(), "manifest.json: after it should come 'manifest.sha256', but there is ''"),
        (lambda parts: parts.pop(-2), "after it should come"),
    ],
)
def test_members_have_one_order(change: Callable[[list[tuple[str, bytes]]], object], words: str) -> None:
    """None is missing, none stands there twice or elsewhere, none is there that doesn't belong."""
    parts = members(bundle())
    change(parts)
    assert words in wrong(packed(parts))


def test_parts_that_change_places_are_found_with_a_new_manifest_too() -> None:
    """Renamed, so that only what is in them tells."""
    parts = dict(members(bundle()))
    first, second = "part-000001.jsonl.gz", "part-000002.jsonl.gz"
    found = wrong(with_manifest((parts | {first: parts[second], second: parts[first]}).items()))
    assert found.startswith(f"{first}, line 1, position ")
    assert found.endswith("it follows position 0")


def test_a_member_that_was_replaced_is_found_by_the_manifest() -> None:
    """The same lines, compressed in another way: every byte counts. Said anew in the manifest, it is the same log."""
    for level in (1, 9):
        parts = dict(members(bundle()))
        name = "part-000001.jsonl.gz"
        parts[name] = compressed(zlib.decompress(parts[name], 31), level)
        assert f"manifest.json: it lists {{'bytes': {len(members(bundle())[1][1])}" in wrong(packed(parts.items()))
        assert not verified(with_manifest(parts.items()), trusted=KEY).wrong


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda part: compressed(b"") + part, "its compressed data don't end properly"),
        (lambda part: part + compressed(b""), "its compressed data don't end properly"),
        (lambda part: part + bytes(8), "its compressed data don't end properly"),
        (lambda part: part[:-1], "its compressed data don't end properly"),
        (lambda part: compressed(zlib.decompress(part, 31)[:-1]), "its compressed data don't end properly"),
        (lambda part: zlib.decompress(part, 31), "it is damaged"),
        (lambda _: compressed(b"x" * 2**25), "a line is too long"),
    ],
)
def test_a_part_is_one_stream_of_whole_lines(change: Callable[[bytes], bytes], words: str) -> None:
    """What follows one stream, others may read or not: then it would not be one bundle for all."""
    parts = dict(members(bundle()))
    name = "part-000001.jsonl.gz"
    parts[name] = change(parts[name])
    found = wrong(with_manifest(parts.items()))
    assert found.startswith(name)
    assert words in found


def respelt(line: bytes) -> bytes:
    """The same JSON in other bytes."""
    return json.dumps(json.loads(line)).encode() + b"\n"


LINES: Final[dict[str, tuple[Callable[[list[bytes]], object], str]]] = {
    "a line is missing": (lambda lines: lines.pop(4), "line 5, position 5: it follows position 3"),
    "a line stands there twice": (lambda lines: lines.insert(4, lines[4]), "line 6, position 4: it follows position 4"),
    "lines have changed places": (lambda lines: lines.insert(4, lines.pop(5)), "it follows position 3"),
    "the last event is missing": (
        lambda lines: lines.pop(-2),
        "the head of 42 events is not that of the 41",
    ),
    "the last head is missing": (lambda lines: lines.pop(), "the log ends at 42, but the last signed head at ['19']"),
    "a head stands too late": (
        lambda lines: lines.insert(4, lines.pop(2)),
        "the head of 2 events is not that of the 4",
    ),
    "a line is spelt in another way": (lambda lines: lines.insert(4, respelt(lines.pop(4))), "in its canonical form"),
    "a key stands there twice": (
        lambda lines: lines.insert(4, lines.pop(4).replace(b'{"position":4', b'{"position":9,"position":4')),
        "in its canonical form",
    ),
    "a line is empty": (lambda lines: lines.insert(4, b"\n"), "line 5: the line is not JSON"),
    "a line is no object": (lambda lines: lines.insert(4, b"[]\n"), "not a JSON object"),
    "a line is not UTF-8": (lambda lines: lines.insert(4, b'{"head":"\xff"}\n'), "the line is not JSON"),
    "a line is deep": (lambda lines: lines.insert(4, b"[" * 100_000 + b"\n"), "the line is not JSON"),
    "a line says more": (
        lambda lines: lines.insert(4, lines.pop(4).replace(b'{"position":4', b'{"note":"!","position":4')),
        "a line has these keys: ['note', 'position'",
    ),
    "a line is of another kind": (lambda lines: lines.insert(4, b'{"note":"x"}\n'), "KeyError('position')"),
    "a position is a text": (lambda lines: lines.insert(4, lines.pop(4).replace(b":4,", b':"4",')), "no numbers of 64"),
    "a head is no note": (lambda lines: lines.insert(4, b'{"head":"x"}\n'), "'x' is no signed note"),
}
"""What somebody does to lines, compresses them again, and makes a new manifest; and how it is found."""


@pytest.mark.parametrize("name", LINES)
def test_lines_have_one_order_and_one_form(name: str) -> None:
    """The manifest is right each time: it is for the log itself to tell."""
    change, words = LINES[name]
    assert words in wrong(with_lines(change), trusted=KEY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 3}, "['size']"),
        ({"origin": "ledger/other"}, "['origin']"),
        ({"format": "bundle/2"}, "['format']"),
        ({"head": ""}, "['head']"),
        ({"members": []}, "['members']"),
        ({"note": "trust me"}, "['note']"),
    ],
)
def test_the_manifest_says_what_is_there(change: dict[str, Any], words: str) -> None:
    """All of it, nothing else, and with its own hash right."""
    parts = dict(members(bundle()))
    text = canonical(json.loads(parts["manifest.json"]) | change) + b"\n"
    assert wrong(with_text(parts, text)) == f"manifest.json: it is not what was found, in {words}"


# --- heads and keys --------------------------------------------------------------------------------------------------


def test_a_log_that_was_changed_is_not_that_of_its_heads() -> None:
    """Rewritten from the start, consistently, with the manifest and all; but nobody could sign it."""
    forged = log(alice=2_000)
    as_they_were = {size: [head(log()[:size])] for size in (2, 19, len(log()))}
    assert "the head of 19 events is not that of the 19 before it" in wrong(bundle(forged, as_they_were), trusted=KEY)


def test_a_head_of_a_stranger_is_not_signed() -> None:
    """In the ledger's name, with a key that nobody introduced; or in that of the ledger's key."""
    for position in (19, len(log())):
        by_stranger = heads_of(log(), 2, 19) | {position: [head(log()[:position], STRANGER)]}
        assert f"it is not signed by {str(KEY.public)!a}" in wrong(bundle(heads=by_stranger), trusted=KEY)
    signed, forged = head(log()).split()[-1], b64encode(KEY.public.id + bytes(64)).decode()
    by_nobody = heads_of(log()) | {len(log()): [head(log()).replace(signed, forged)]}
    assert "the signature by key" in wrong(bundle(heads=by_nobody), trusted=KEY)


def test_a_bundle_that_a_stranger_signed_agrees_with_itself_only() -> None:
    """That is what the trusted key is for."""
    rows = log(alice=2_000)
    forged = bundle(rows, {len(rows): [head(rows, STRANGER)]}, keys=[STRANGER])
    assert "agrees with itself" in verified(forged).report
    assert wrong(forged, trusted=KEY).startswith("keys.txt: the key that you trust is not among those")
    claimed = bundle(rows, {len(rows): [head(rows, STRANGER)]}, keys=[KEY, STRANGER])
    assert "it is not signed by" in wrong(claimed, trusted=KEY)


def test_a_new_key_is_introduced_by_the_old_one() -> None:
    """From then on, it alone signs. Whoever trusts the old one trusts the new one, and the other way round."""
    rows, keys = log(), [KEY, NEXT_KEY]
    introduction = head(rows[:19], KEY, NEXT_KEY, introduces=NEXT_KEY)
    heads = {2: [head(rows[:2])], 19: [introduction], len(rows): [head(rows, NEXT_KEY)]}
    again = heads | {19: [introduction, introduction]}
    for trusted in keys:
        for sound in (heads, again):
            report = verified(bundle(rows, sound, keys=keys), trusted=trusted).report
            assert f"key {KEY.public.id.hex()} introduced key {NEXT_KEY.public.id.hex()}" in report

    by_itself = heads | {19: [head(rows[:19], NEXT_KEY, introduces=NEXT_KEY)]}
    assert "it is not signed by" in wrong(bundle(rows, by_itself, keys=keys))
    without_it = heads | {19: [head(rows[:19], KEY, introduces=NEXT_KEY)]}
    assert "the key that it introduces has not signed it" in wrong(bundle(rows, without_it, keys=keys))
    by_the_old_one = heads | {len(rows): [head(rows)]}
    assert "it is not signed by" in wrong(bundle(rows, by_the_old_one, keys=keys))
    never = {len(rows): [head(rows)]}
    assert "no head introduces the key" in wrong(bundle(rows, never, keys=keys))
    not_the_next = heads | {19: [head(rows[:19], KEY, STRANGER, introduces=STRANGER)]}
    assert "not the next one" in wrong(bundle(rows, not_the_next, keys=[*keys, STRANGER]))
    one_too_many = heads | {len(rows): [head(rows, NEXT_KEY, STRANGER, introduces=STRANGER)]}
    assert "not the next one" in wrong(bundle(rows, one_too_many, keys=keys))


def test_a_signature_under_an_honest_head_introduces_nobody() -> None:
    """Anybody who holds one can add his own line to it. Once that was enough, and he could write the log on."""
    rows, keys = log(), [KEY, STRANGER]
    signature = head(rows[:19], STRANGER).rpartition("\n\n")[2]
    heads = {2: [head(rows[:2])], 19: [head(rows[:19]) + signature], len(rows): [head(rows, STRANGER)]}
    assert "it is not signed by" in wrong(bundle(rows, heads, keys=keys), trusted=KEY)
    named = heads | {19: [head(rows[:19], STRANGER, introduces=STRANGER)]}
    assert "it is not signed by" in wrong(bundle(rows, named, keys=keys), trusted=KEY)
    honest = heads_of(rows, 2) | {19: [head(rows[:19]) + signature]}
    assert verified(bundle(rows, honest), trusted=KEY).report


def test_a_head_that_was_kept_has_to_be_of_the_log() -> None:
    """At its own size, be it that of a head in the bundle or not."""
    for size in (1, 19, 30, len(log())):
        report = verified(bundle(), trusted=KEY, kept=head(log()[:size])).report
        assert "the head that you kept" in report
        other = head(log(alice=2_000)[:size])
        if size > 1:
            assert f"position {size}: the head that you kept is of another log" in wrong(bundle(), kept=other)


def test_a_log_that_is_shorter_than_the_head_that_was_kept_proves_nothing() -> None:
    """Its end may have been cut off."""
    older = bundle(log()[:19], heads_of(log()[:19]))
    assert not verified(older, trusted=KEY).wrong
    assert "the head that you kept is of 42 events, which is more than there are" in wrong(older, kept=head(log()))


def test_a_head_that_a_stranger_signed_is_not_one_to_keep() -> None:
    """Nor is one of another ledger."""
    assert "not signed with a key of this ledger" in wrong(bundle(), kept=head(log(), STRANGER))
    other = sign(TreeHead("ledger/other", 1, bytes(32)).text, [KEY])
    assert "is no head of 'ledger/main'" in wrong(bundle(), kept=other)


# --- breaks ----------------------------------------------------------------------------------------------------------


def break_note(before: str, rows: Sequence[Row], *keys: SigningKey) -> str:
    """That the log goes on from these rows, after a head that was of more."""
    _, size, its_root = before.split("\n")[:3]
    lines = (f"{ORIGIN}/break/1", size, its_root, len(rows), b64encode(root(rows)).decode(), "2026-01-02T00:00:00Z")
    return sign("".join(f"{each}\n" for each in (*lines, "the disk was lost")), keys or [KEY])


LOST: Final = head(log(alice=2_000)[:22])
"""A head of a log that was taken back from position 19 on."""


def test_a_break_is_named_openly() -> None:
    """The log is what it is, and everybody is told that it was something else."""
    told = "the log was openly set back from 22 to 19 events, at '2026-01-02T00:00:00Z': 'the disk was lost'"
    breaks = {19: [break_note(LOST, log()[:19])]}
    assert told in verified(bundle(breaks=breaks), trusted=KEY).report
    kept = wrong(bundle(breaks=breaks), kept=LOST)
    assert "the head that you kept is of another log" in kept
    assert "from 22 to 19 events" in kept


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (break_note(LOST, log()[:18]), "the log does not go on at 18 events"),
        (break_note(LOST, log(alice=2_000)[:19]), "the log does not go on at 19 events"),
        (break_note(LOST, log()[:19], STRANGER), "it is not signed by"),
        (head(log()[:19]), "is no break"),
    ],
)
def test_a_break_says_where_the_log_goes_on(note: str, words: str) -> None:
    """At the events that stand before it, and it is signed."""
    assert words in wrong(bundle(breaks={19: [note]}))


# --- the books -------------------------------------------------------------------------------------------------------


Rewriting = tuple[str, dict[str, Any], str]

STATES: Final[list[Rewriting]] = [
    ("FundsReserved", {"after__reserved": 501}, "'account/alice' is said to be {"),
    ("FundsReserved", {"after__posted": 1_001}, "is said to be"),
    ("FundsReserved", {"after__credit_limit": 1}, "is said to be"),
    ("FundsReserved", {"after__status": "CLOSED"}, "is said to be"),
    ("FundsReserved", {"after__kind": "EXTERNAL"}, "is said to be"),
    ("FundsReserved", {"after__note": ""}, "is said to be"),
    ("FundsDebited", {"from_reserved": True}, "is said to be"),
    ("AccountOpened", {"after__posted": 1}, "is said to be"),
    ("AccountOpened", {"after__posted": False}, "False is not an amount"),
    ("AccountOpened", {"account_id": "other"}, "it does not open 'account/bank'"),
    ("CreditLimitChanged", {"credit_limit": 78}, "is said to be"),
    (
        "CreditLimitChanged",
        {"credit_limit": -10_000, "after__credit_limit": -10_000},
        "'account/alice' is below the limit",
    ),
    ("CreditLimitChanged", {"credit_limit": 10**19, "after__credit_limit": 10**19}, "is not an amount in minor units"),
    ("AccountFrozen", {"scope": "DEBITS"}, "is said to be"),
    ("CreditLimitChanged", {"topic": "AccountClosed", "after__status": "CLOSED"}, "is said to be"),
    (
        "CreditLimitChanged",
        {"topic": "AccountClosed", "after__status": "CLOSED", "after__credit_limit": 0},
        "'account/alice' is closed with money on it",
    ),
    ("AccountUnfrozen", {"topic": "AccountClosed", "after__status": "CLOSED"}, "'account/empty' is not open"),
    ("FundsReleased", {"amount": 901, "after__reserved": -601}, "has less than nothing reserved"),
]
"""What the account's state is said to be after an event."""

MONEY: Final[list[Rewriting]] = [
    ("FundsReserved", {"amount": 0}, "the amount has to be above zero"),
    ("FundsReserved", {"amount": -5}, "the amount has to be above zero"),
    ("FundsReserved", {"amount": 500.0}, "500.0 is not an amount"),
    ("FundsReserved", {"amount": True}, "True is not an amount"),
    ("FundsReserved", {"amount": "500"}, "'500' is not an amount"),
    ("FundsReserved", {"amount": 10**18 + 1}, "is not an amount"),
    (
        "FundsReserved",
        {"amount": 499, "after__reserved": 499},
        "amount=500, currency='EUR', counterparty=None, from_reserved=False)], but did",
    ),
    ("FundsDebited", {"amount": 999, "after__posted": -999}, "debits less credits of the command at 3: {'EUR': -1}"),
    (
        "PaymentAuthorized",
        {"payer_account_id": "shop"},
        "has to do [Effect(topic='FundsReserved', stream='account/shop'",
    ),
    ("TransferPosted", {"legs": []}, "has to do [], but did [Effect(topic='FundsDebited'"),
    ("FundsCredited", {"counterparty": "shop"}, "counterparty='bank', from_reserved=False)], but did"),
    ("TransferDeclined", {"topic": "TransferPosted"}, "has to do [Effect(topic='FundsDebited'"),
]
"""What moves, in commands that are otherwise as they were."""

PAYMENTS: Final[list[Rewriting]] = [
    ("PaymentCaptured", {"before__captured": 1}, "was Amounts(authorized=600, capturable=600, captured=0"),
    ("PaymentCaptured", {"after__released": 1}, "does not add up to what was authorized"),
    ("PaymentCaptured", {"after__capturable": -1, "after__released": 401}, "has an amount below zero"),
    ("PaymentCaptured", {"after__captured": 601, "after__capturable": 0}, "captures more than was authorized"),
    (
        "PaymentCaptured",
        {"amount__minor_units": 201, "after__captured": 201, "after__capturable": 399},
        "amount=201, currency='EUR', counterparty='shop', from_reserved=True",
    ),
    ("PaymentCaptured", {"amount__minor_units": 199}, "199 of 'payment/p1' were asked for, but it was 200"),
    ("PaymentRefunded", {"amount__minor_units": 51}, "51 of 'payment/p1' were asked for, but it was 50"),
    ("AuthorizationIncremented", {"amount__minor_units": 100}, "100 of 'payment/p1' were asked for, but it was 600"),
    ("PaymentCaptured", {"after__refunded": 1}, "'PaymentCaptured' can't change ['refunded']"),
    ("PaymentRefunded", {"after__refunded": 301}, "refunds more than was captured"),
    ("PaymentVoided", {"after__released": 0, "after__expired": 70}, "'PaymentVoided' can't change ['expired']"),
    ("PaymentAuthorized", {"payment_id": "other"}, "it does not begin 'payment/p1'"),
    ("PaymentDeclined", {"payment_id": "other"}, "it does not begin 'payment/p4'"),
    ("TransferDeclined", {"transfer_id": "other"}, "it is not the one event of 'transfer/t2'"),
]
"""What payments and transfers say."""

FRAMES: Final[list[Rewriting]] = [
    ("PaymentVoided", {"command_position": 1}, "is not its own"),
    ("FundsReserved", {"command_position": 1}, "is not its own"),
    ("PaymentVoided", {"timestamp": "2026-01-01T12:00:00Z"}, "its state says another time"),
    ("PaymentVoided", {"timestamp": 5}, "it is not made as it has to be"),
    ("PaymentVoided", {"class_version": 2}, "this program is too old for 'PaymentVoided' 2"),
    ("PaymentVoided", {"after": 5}, "it is not made as it has to be"),
    ("PaymentVoided", {"after": {}}, "it is not made as it has to be"),
    ("PaymentVoided", {"position": 40}, "it follows position"),
    ("PaymentVoided", {"version": 3}, "version 3 of 'payment/p2' follows another"),
    ("PaymentVoided", {"stream": "payment/p9"}, "'payment/p9' was not authorized"),
    ("PaymentVoided", {"stream": "account/p2"}, "this program knows no 'PaymentVoided' of 'account/p2'"),
    ("PaymentVoided", {"topic": "PaymentBanned"}, "this program knows no 'PaymentBanned' of 'payment/p2'"),
    ("PaymentVoided", {"recorded_at": 1}, "its time is before that of the event before it"),
    ("PaymentVoided", {"state": b"{}"}, "KeyError('class_version')"),
    ("PaymentVoided", {"state": b'{"a":1,"a":1}'}, "the state is not a JSON object in its canonical form"),
    ("PaymentVoided", {"state": b"\xff"}, "the state is not JSON"),
    ("PaymentDeclined", {"version": 2}, "it does not begin 'payment/p4'"),
    ("TransferDeclined", {"version": 2}, "it is not the one event of 'transfer/t2'"),
    ("FundsReleased", {"version": 1}, "version 1 of 'account/alice' follows version"),
    ("FundsReserved", {"stream": "account/nobody", "version": 1}, "'account/nobody' is not open"),
]
"""What all events have: columns, the command, the time."""


@pytest.mark.parametrize(("topic", "changes", "words"), [*STATES, *MONEY, *PAYMENTS, *FRAMES])
def test_what_does_not_add_up_is_found(topic: str, changes: dict[str, Any], words: str) -> None:
    """The first event of the topic says something else. All is signed like that: it is for the books to tell."""
    place = next(place for place, row in enumerate(log()) if row.topic == topic)
    rows = [*log()]
    rows[place] = rows[place].having(**changes)
    found = wrong(bundle(rows), trusted=KEY)
    assert words in found
    assert found.startswith("part-0")


def test_a_head_within_a_command_is_no_fault() -> None:
    """Signers don't know commands. What is missing is said, and everything before it is checked."""
    for size, missing in ((3, 2), (4, 1), (9, 1)):
        rows = log()[:size]
        assert f"{missing} events of it are not here" in verified(bundle(rows, heads_of(rows)), trusted=KEY).report
    rows = (*log()[:3], log()[3].having(amount=999, after__posted=-999))
    assert "debits less credits" in wrong(bundle(rows, heads_of(rows)))


def test_a_payment_that_is_over_has_no_more_changes() -> None:
    """It was forgotten, which keeps memory bounded; and it can't come back."""
    voided = next(place for place, row in enumerate(log()) if row.topic == "PaymentVoided")
    rows = [*log()[: voided + 2]]
    again = rows[voided].having(position=voided + 3, version=3, command_position=voided + 3)
    assert "nothing of it can be captured or refunded any more" in wrong(bundle([*rows, again]), trusted=KEY)


# --- the command -----------------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ended]:
    """The program as an auditor runs it, in a folder with a bundle and all that belongs to it."""
    (tmp_path / "main.bundle").write_bytes(bundle())
    (tmp_path / "damaged.bundle").write_bytes(bundle()[:-1])
    (tmp_path / "key.pub").write_text(f"{KEY.public}\n")
    (tmp_path / "kept.head").write_text(head(log()[:30]))
    (tmp_path / "other.head").write_text(head(log(alice=2_000)[:30]))

    def run(*arguments: str) -> Ended:
        command = [sys.executable, "-I", str(PROGRAM), *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


def test_it_ends_with_0_and_keeps_the_head(run: Callable[..., Ended]) -> None:
    """A key in a file or as a text; a head that was kept the last time."""
    ended = run("main.bundle", "--public-key", "key.pub", "--head", "kept.head", "--save-head", "new.head")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith(f"Verified. The root of all 42 events is {b64encode(root(log())).decode()}\n")
    assert run("main.bundle", "--public-key", str(KEY.public), "--head", "new.head").code == 0


def test_it_ends_with_1_and_says_what_is_wrong(run: Callable[..., Ended]) -> None:
    """On its output: that is its verdict."""
    ended = run("damaged.bundle")
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith("WRONG: manifest.sha256: the file ends too early\n")
    assert run("main.bundle", "--head", "other.head").code == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "the following arguments are required: FILE"),
        (["missing.bundle"], "missing.bundle: No such file or directory"),
        (["."], ".: Is a directory"),
        (["main.bundle", "--public-key", "mistyped"], "--public-key: 'mistyped' is not a public key of Ed25519, and "),
        (["main.bundle", "--public-key", "mistyped"], ", and there is no such file"),
        (["main.bundle", "--public-key", "kept.head"], "is not a public key of Ed25519\n"),
        (["main.bundle", "--public-key", "main.bundle"], "--public-key: main.bundle is not a text"),
        (["main.bundle", "--head", "missing.head"], "missing.head: No such file or directory"),
        (["main.bundle", "--head", "key.pub"], "is no signed note"),
        (["main.bundle", "--head", "main.bundle"], "main.bundle is not a text"),
        (["main.bundle", "--inclusion", "first"], "'first' is not a position: they are numbered from 1"),
        (["main.bundle", "--save-head", "missing/new.head"], "missing/new.head: No such file or directory"),
    ],
)
def test_it_ends_with_2_when_it_could_not_be_tried(run: Callable[..., Ended], arguments: list[str], why: str) -> None:
    """One line says why, and no traceback."""
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert why in ended.err
    assert "Traceback" not in ended.err
    assert "Errno" not in ended.err


@pytest.mark.parametrize("bundle", ["main.bundle", "damaged.bundle"])
def test_what_can_not_be_written_is_no_verdict(run: Callable[..., Ended], bundle: str, tmp_path: Path) -> None:
    """As when the disk is full: 1 would say that something is wrong."""
    command = [sys.executable, "-I", str(PROGRAM), bundle]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr == "verify_bundle: can't write what it found: No space left on device\n"
    assert ended.returncode == 2


def test_a_head_that_was_kept_is_not_lost_where_the_next_can_not_be_written(
    run: Callable[..., Ended], tmp_path: Path
) -> None:
    """In its place, as who checks each bundle against the last does it. The disk is full, which a limit stands for."""
    kept = (tmp_path / "kept.head").read_bytes()
    there = sorted(tmp_path.iterdir())
    code = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
        "runpy.run_path({!r}, {{}}, '__main__')"
    )
    ended = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            code.format(str(PROGRAM)),
            "main.bundle",
            "--head=kept.head",
            "--save-head=kept.head",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "verify_bundle: kept.head: File too large\n"
    assert (tmp_path / "kept.head").read_bytes() == kept
    assert sorted(tmp_path.iterdir()) == there
    assert run("main.bundle", "--head", "kept.head", "--save-head", "kept.head").code == 0
    assert (tmp_path / "kept.head").read_bytes() != kept


def test_it_shows_an_event_and_its_proof(run: Callable[..., Ended]) -> None:
    """Whoever wants to can check it by hand: SHA-256 of 01, left and right, up to the root."""
    shown = run("main.bundle", "--inclusion", "7").out
    row = log()[6]
    assert f"Position 7: {row.topic}, version {row.version} of {row.stream!r}" in shown
    assert json.loads(shown[shown.index("{") : shown.rindex("}") + 1]) == row.fields
    (leaf, *path, top) = re.findall(r"^(leaf|left|right|root) +([0-9a-f]{64})$", shown, re.MULTILINE)
    node = bytes.fromhex(leaf[1])
    for side, sibling in path:
        pair = [node, bytes.fromhex(sibling)]
        node = merkle.node_hash(*(reversed(pair) if side == "left" else pair))
    assert node.hex() == top[1] == root(log()).hex()


@pytest.mark.parametrize(
    ("position", "why"),
    [
        ("43", "what is in it is right, but it has no position 43"),
        ("0", "'0' is not a position"),
        ("-3", "not a position"),
    ],
)
def test_a_position_that_is_not_there_is_no_fault_of_the_bundle(
    run: Callable[..., Ended], position: str, why: str
) -> None:
    """It is wrong usage, and says so."""
    ended = run("main.bundle", f"--inclusion={position}")
    assert ended.code == 2
    assert why in ended.err
    assert "WRONG" not in ended.out + ended.err


def test_an_empty_key_is_not_the_same_as_none(run: Callable[..., Ended], tmp_path: Path) -> None:
    """As a variable of the shell that is not set, or what is left of a command that failed."""
    (tmp_path / "empty").touch()
    for empty in ("", str(tmp_path / "empty")):
        ended = run("main.bundle", "--public-key", empty)
        assert ended.code == 2
        assert "Verified" not in ended.out


def test_its_help_is_for_somebody_who_never_saw_a_ledger(run: Callable[..., Ended]) -> None:
    """What it checks, what it leaves to whoever runs it, every option, the exit codes."""
    shown = run("--help").out
    for words in ("debits equal credits", "Whose key is it?", "--public-key", "--head", "--inclusion", "exit codes: 0"):
        assert words in shown
