"""Signed notes: the vectors of others, and that nothing passes that is not signed by a key that is trusted."""

from __future__ import annotations

from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ledger.audit.merkle import leaf_hash
from ledger.audit.note import Note, NoteInvalid, PublicKey, SigningKey, TreeHead, read_head, sign

# From the documentation of golang.org/x/mod/sumdb/note, whose format this is.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETERS_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETERS_NOTE = (
    f"{PETERS_TEXT}\n"
    "\N{EM DASH} PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

OLD = SigningKey("ledger/main", Ed25519PrivateKey.from_private_bytes(bytes(32)))
NEW = SigningKey("ledger/main", Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1"))
HEAD = TreeHead("ledger/main", 123, leaf_hash(b"root"))


def test_a_note_of_another_implementation_is_read() -> None:
    """Its text, its signature, its key."""
    key = PublicKey.parse(PETER)
    note = Note.parse(PETERS_NOTE)
    note.require_signed([key])
    assert note.text == PETERS_TEXT
    assert str(key) == PETER


def test_a_head_is_signed_and_read() -> None:
    """As docs/audit.md has it: three lines, an empty one, a signature."""
    note = sign(HEAD.text, [OLD])
    assert note.split("\n")[:4] == ["ledger/main", "123", b64encode(HEAD.root).decode(), ""]
    assert note.split("\n")[4].startswith("\N{EM DASH} ledger/main ")
    assert read_head(note, [OLD.public]) == HEAD
    assert PublicKey.parse(str(OLD.public)) == OLD.public


def test_a_head_by_two_keys_is_trusted_by_who_trusts_either() -> None:
    """That is how a new key is introduced; who knows neither trusts nothing."""
    both = sign(HEAD.text, [OLD, NEW])
    assert read_head(both, [OLD.public]) == read_head(both, [NEW.public]) == HEAD
    assert Note.parse(both).signers([OLD.public, NEW.public]) == [OLD.public, NEW.public]
    stranger = SigningKey("ledger/main", Ed25519PrivateKey.generate())
    with pytest.raises(NoteInvalid, match="no key that is trusted"):
        read_head(both, [stranger.public])


def test_a_forged_line_in_a_trusted_name_is_refused_even_beside_a_right_one() -> None:
    """A note that claims a signature it doesn't have is not to be trusted at all."""
    note = sign(HEAD.text, [OLD, NEW])
    forged = note.replace(note.split()[-1], b64encode(NEW.public.id + bytes(64)).decode())
    with pytest.raises(NoteInvalid, match="not right"):
        read_head(forged, [OLD.public, NEW.public])


def test_a_head_of_another_ledger_is_refused() -> None:
    """Signed by the right key, but not in its name."""
    note = sign(TreeHead("ledger/other", 1, HEAD.root).text, [OLD])
    with pytest.raises(NoteInvalid, match="ledger/other"):
        read_head(note, [OLD.public])


@given(st.data())
def test_one_changed_character_anywhere_is_noticed(data: st.DataObject) -> None:
    """In the text or in the signature."""
    note = sign(HEAD.text, [OLD])
    place = data.draw(st.integers(0, len(note) - 1))
    letter = data.draw(st.characters(codec="utf-8").filter(lambda each: each != note[place]))
    with pytest.raises(NoteInvalid):
        read_head(note[:place] + letter + note[place + 1 :], [OLD.public])


def test_a_signature_has_one_form() -> None:
    """The last letter of its base64 has bits that mean nothing: with one of them set it is another note."""
    note = sign(HEAD.text, [OLD])
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    assert note.endswith("=\n")
    last = note[-3]
    other = letters[letters.index(last) + 1]
    with pytest.raises(NoteInvalid, match="base64"):
        read_head(note[:-3] + other + "=\n", [OLD.public])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no note",
        "text\n\n",
        "text\n\nno dash AAAA\n",
        "text\n\n\N{EM DASH} name\n",
        "text\n\n\N{EM DASH} name !!!!\n",
        "text\n\n\N{EM DASH} name AAAA\n",
        "text\n\n\N{EM DASH} name AAAAAAAA",
    ],
)
def test_what_is_not_a_note_is_refused(text: str) -> None:
    """With a reason, whatever is missing."""
    with pytest.raises(NoteInvalid):
        Note.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "\n1\nAA==\n",
        "o\n01\nAA==\n",
        "o\n-1\nAA==\n",
        "o\n1\nAA==\n",
        "o\n1\n!\n",
        "o\n1\n",
        f"o\n{'9' * 5_000}\nAA==\n",
    ],
)
def test_what_is_not_a_head_is_refused(text: str) -> None:
    """A size with a sign or a zero before it, a root that is no hash."""
    with pytest.raises(NoteInvalid):
        TreeHead.parse(text)


@pytest.mark.parametrize("text", ["", "a+b", "a+00000000+AA==", f"x{PETER}", PETER[:-2], PETER.replace("c7", "c8")])
def test_what_is_not_a_public_key_is_refused(text: str) -> None:
    """Its id has to fit."""
    with pytest.raises(NoteInvalid):
        PublicKey.parse(text)
