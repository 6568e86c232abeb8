"""Findings: the first are kept, in order, and none is counted twice."""

from __future__ import annotations

from random import Random

from ledger.audit.findings import Finding, Findings, Kind


def at(position: int | None, kind: Kind = Kind.DECISION, **more: str) -> Finding:
    return Finding(kind, "wrong", position, **more)  # type: ignore[arg-type]


def test_the_first_ones_are_kept_and_the_rest_is_counted() -> None:
    """Whatever the order in which they are found."""
    positions = list(range(1, 1_001))
    Random(1).shuffle(positions)
    findings = Findings(most=5)
    for position in positions:
        findings.add(at(position))
    assert [each.position for each in findings.first] == [1, 2, 3, 4, 5]
    assert findings.others == 995


def test_the_log_comes_first_then_what_was_signed_then_what_was_made_of_it() -> None:
    """At one position of the log only the first kind is named."""
    findings = Findings()
    for each in (
        at(1, Kind.READ_MODEL, place="balances, a"),
        at(1, Kind.READ_MODEL, place="entries, a 1"),
        at(2, Kind.SIGNATURE, place="head 1"),
        at(None, Kind.SUMS),
        at(9, Kind.ROOT),
        at(7, Kind.DECISION),
        at(7, Kind.CHANGED),
        at(7, Kind.VERSIONS),
    ):
        findings.add(each)
    kinds = [each.kind for each in findings.first]
    assert kinds == [Kind.VERSIONS, Kind.ROOT, Kind.SUMS, Kind.SIGNATURE, Kind.READ_MODEL, Kind.READ_MODEL]
    assert findings.others == 0


def test_what_others_have_found_is_taken_over() -> None:
    """With what they have only counted."""
    findings = Findings(most=2)
    findings.add(at(5))
    findings.merge([at(1), at(2)], 10)
    assert [each.position for each in findings.first] == [1, 2]
    assert findings.others == 11


def test_a_finding_says_where_and_what() -> None:
    """On one line, and for programs."""
    finding = Finding(Kind.DECISION, "captured", 1_234, "payment/p-7", 2)
    assert finding.line == "position 1,234 (payment/p-7, version 2): captured"
    assert finding.as_json() == {
        "kind": "DECISION",
        "what": "captured",
        "position": 1_234,
        "stream": "payment/p-7",
        "version": 2,
    }
    assert Finding(Kind.READ_MODEL, "wrong", 3, place="balances, a").line == "balances, a (position 3): wrong"
    assert Finding(Kind.HEADS, "wrong", place="head 3").line == "head 3: wrong"
    assert Finding(Kind.SUMS, "wrong").line == "the log: wrong"
