"""The Merkle tree: the vectors of Certificate Transparency, the laws of proofs, and a stranger's implementation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from ledger.audit.leaf import leaf_data
from ledger.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofInvalid,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    root_of,
    subtrees,
    verify_consistency,
    verify_inclusion,
)

# The test data of RFC 6962's reference implementation, google/certificate-transparency.
LEAVES = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
INCLUSION = {
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
}
CONSISTENCY = {
    (1, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}


def hashed(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def nodes(leaves: list[bytes]) -> Callable[[int, int], bytes]:
    """Hashes of complete subtrees, straight from their definition."""

    @cache
    def node(level: int, index: int) -> bytes:
        if level == 0:
            return leaves[index]
        return node_hash(node(level - 1, 2 * index), node(level - 1, 2 * index + 1))

    return node


def vectors() -> list[bytes]:
    return [leaf_hash(bytes.fromhex(each)) for each in LEAVES]


def test_the_empty_tree() -> None:
    """Its root is the hash of nothing."""
    assert Frontier().root() == root_of([]) == EMPTY_ROOT == sha256(b"").digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_vectors(size: int) -> None:
    """By appending leaf for leaf, and from complete subtrees."""
    assert root_of(vectors()[:size]).hex() == ROOTS[size - 1]
    assert root_at(size, nodes(vectors())).hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_those_of_the_vectors(index: int, size: int) -> None:
    """To the byte."""
    found = inclusion_proof(index, size, nodes(vectors()))
    assert tuple(each.hex() for each in found) == INCLUSION[index, size]


@pytest.mark.parametrize(("first", "second"), CONSISTENCY)
def test_consistency_proofs_are_those_of_the_vectors(first: int, second: int) -> None:
    """To the byte."""
    found = consistency_proof(first, second, nodes(vectors()))
    assert tuple(each.hex() for each in found) == CONSISTENCY[first, second]


def test_proofs_of_every_size_hold_and_are_a_stranger_s() -> None:
    """All pairs up to 40 leaves, against the roots and paths of pymerkle, which shares no line with ours."""
    most = 40
    leaves = hashed(most)
    node = nodes(leaves)
    stranger = InmemoryTree(algorithm="sha256")
    for number in range(most):
        stranger.append_entry(str(number).encode())
    for size in range(1, most + 1):
        root = root_of(leaves[:size])
        assert stranger.get_root(size) == root
        for index in range(size):
            path = inclusion_proof(index, size, node)
            assert stranger.prove_inclusion(index + 1, size).path == [leaves[index], *path]
            verify_inclusion(index, size, leaves[index], path, root)
        for first in range(1, size + 1):
            steps = consistency_proof(first, size, node)
            verify_consistency(first, size, stranger.get_root(first), root, steps)


@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_whatever_is_wrong_in_a_proof_is_noticed(one: int, other: int, data: st.DataObject) -> None:
    """A changed, missing or added hash, another leaf, place, size or root."""
    first, size = sorted((one, other))
    leaves = hashed(size)
    node, root = nodes(leaves), root_of(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = inclusion_proof(index, size, node)
    verify_inclusion(index, size, leaves[index], path, root)
    steps = consistency_proof(first, size, node)
    before = root_of(leaves[:first])
    verify_consistency(first, size, before, root, steps)

    for forged in forgeries(path, data):
        with pytest.raises(ProofInvalid):
            verify_inclusion(index, size, leaves[index], forged, root)
    with pytest.raises(ProofInvalid):
        verify_inclusion(index, size, leaf_hash(b"forged"), path, root)
    with pytest.raises(ProofInvalid):
        verify_inclusion(size, size, leaves[index], path, root)
    with pytest.raises(ProofInvalid):
        verify_inclusion(index, size, leaves[index], path, leaf_hash(b"other"))
    for forged in forgeries(steps, data):
        with pytest.raises(ProofInvalid):
            verify_consistency(first, size, before, root, forged)
    with pytest.raises(ProofInvalid):
        verify_consistency(first, size, leaf_hash(b"other"), root, steps)
    with pytest.raises(ProofInvalid):
        verify_consistency(first, size, before, leaf_hash(b"other"), steps)
    with pytest.raises(ProofInvalid):
        verify_consistency(size + 1, size, before, root, steps)


def forgeries(proof: list[bytes], data: st.DataObject) -> list[list[bytes]]:
    forged = [[*proof, leaf_hash(b"more")]]
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        forged += [proof[:-1], proof[1:] if len(proof) > 1 else []]
        forged.append([*proof[:place], leaf_hash(b"x"), *proof[place + 1 :]])
    return [each for each in forged if each != proof]


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_frontier_goes_on_from_where_it_was(size: int, more: int) -> None:
    """From the hashes of its complete subtrees alone."""
    leaves = hashed(size + more)
    node = nodes(leaves)
    frontier = Frontier(size, [node(*each) for each in subtrees(size)])
    for leaf in leaves[size:]:
        frontier.append(leaf)
    assert frontier.size == size + more
    assert frontier.root() == root_of(leaves)
    assert frontier.hashes == tuple(node(*each) for each in subtrees(size + more))


# --- leaves ----------------------------------------------------------------------------------------------------------


def test_the_data_of_a_leaf_are_as_documented() -> None:
    """Seven fields, each with its length before it: these bytes for ever."""
    moment = datetime(2026, 11, 25, 12, 0, 0, 1, UTC)
    data = leaf_data(7, "account/é", 3, "FundsReserved", moment, b"{}")
    fields, rest = [], data
    while rest:
        length = int.from_bytes(rest[:4])
        fields.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    micros = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()) * 1_000_000 + 1
    assert fields == [
        b"ledger/leaf/1",
        (7).to_bytes(8),
        "account/é".encode(),
        (3).to_bytes(8),
        b"FundsReserved",
        micros.to_bytes(8),
        b"{}",
    ]
    assert leaf_hash(data).hex() == "553ebce59a9e07ab36a809731d3d8419654bf9a1bde2e87d077573f5e5abf2de"


def test_a_time_before_1970_is_negative() -> None:
    """Two's complement."""
    moment = datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)
    assert (-1).to_bytes(8, signed=True) in leaf_data(1, "s", 1, "t", moment, b"")


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4), st.binary(max_size=4)), min_size=2, max_size=2))
def test_different_events_have_different_data(rows: list[tuple[str, str, bytes]]) -> None:
    """No byte of one field passes for a byte of the next."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    one, other = (leaf_data(1, stream, 1, topic, now, state) for stream, topic, state in rows)
    assert (one == other) == (rows[0] == rows[1])
