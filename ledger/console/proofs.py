"""Proofs: that events are in the log of which somebody has signed a tree head. The server is not trusted in this."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import NamedTuple

from ledger.audit.leaf import leaf_data
from ledger.audit.merkle import ProofInvalid, leaf_hash, verify_inclusion
from ledger.audit.note import NotSigned, PublicKey, TreeHead, read_head
from ledger.console.rpc import Ask
from ledger.v1.audit_pb2 import Event, GetInclusionProofRequest, GetTreeHeadRequest


class Proven(NamedTuple):
    """The signed head, and what is wrong with the proof of each event in turn: None if nothing is."""

    head: TreeHead
    signed_note: str
    wrong: Sequence[str | None]


def prove(ask: Ask, ledger: str, events: Sequence[Event], key: PublicKey) -> Proven:
    """Prove events by the newest head, which covers the last of them. Raises NoteInvalid if the key didn't sign it."""
    note = ask(GetTreeHeadRequest(ledger=ledger, min_position=events[-1].position)).tree_head.signed_note
    try:
        head = read_head(note, [key])
    except NotSigned:
        raise NotSigned(
            "your key has not signed it; if the ledger's key was changed since, give the new one: `ledger audit "
            "verify` and `ledger audit check` with yours tell which one it introduced"
        ) from None
    return Proven(head, note, [_wrong(ask, ledger, event, head) for event in events])


def _wrong(ask: Ask, ledger: str, event: Event, head: TreeHead) -> str | None:
    proof = ask(GetInclusionProofRequest(ledger=ledger, position=event.position, tree_size=head.size))
    recorded_at = event.recorded_at.ToDatetime(UTC)
    data = leaf_data(event.position, event.stream, event.version, event.topic, recorded_at, event.state)
    try:
        verify_inclusion(event.position - 1, head.size, leaf_hash(data), proof.hashes, head.root)
    except ProofInvalid as error:
        return str(error)
    return None
