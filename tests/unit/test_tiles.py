"""Tiles: whatever the tree's size and however it grew, its hashes are where proofs look for them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.audit.merkle import consistency_proof, inclusion_proof, leaf_hash, root_at, root_of
from ledger.audit.tiles import WIDTH, Edge, Place, edge_of, node_of, places_of

MANY = 3 * WIDTH * WIDTH // 2
LEAVES = [leaf_hash(str(number).encode()) for number in range(3_000)]


def grown(size: int, steps: list[int]) -> tuple[Edge, dict[Place, bytes]]:
    """A tree of `size` leaves that grew in steps, each of them stored and read again; and its tiles as stored."""
    stored: dict[Place, bytes] = {}
    edge, at = Edge(), 0
    for step in [*steps, size]:
        to = min(size, at + step)
        edge.extend(b"".join(LEAVES[at:to]))
        stored.update(edge.taken())
        at = to
        edge = Edge(at, {place: stored[place] for place, _ in edge_of(at)})
    return edge, stored


@settings(max_examples=60)
@given(st.integers(0, len(LEAVES)), st.lists(st.integers(1, 700), max_size=6), st.data())
def test_roots_and_proofs_come_out_of_tiles(size: int, steps: list[int], data: st.DataObject) -> None:
    """The same as from all leaves; and of earlier sizes too, from tiles that have grown since."""
    edge, stored = grown(size, steps)
    assert edge.root() == root_of(LEAVES[:size])
    if size:
        first = data.draw(st.integers(1, size))
        index = data.draw(st.integers(0, first - 1))
        node, plain = node_of(stored.__getitem__), node_of({(0, 0): b"".join(LEAVES[:WIDTH])}.__getitem__)
        assert root_at(first, node) == root_of(LEAVES[:first])
        assert all(len(each) == 32 for each in inclusion_proof(index, first, node))
        assert places_of(lambda use: consistency_proof(first, size, use)) <= stored.keys()
        if size <= WIDTH // 2:
            assert inclusion_proof(index, first, node) == inclusion_proof(index, first, plain)


def test_a_tree_of_three_levels() -> None:
    """More leaves than two levels of tiles hold."""
    leaf = LEAVES[0]
    edge = Edge()
    edge.extend(leaf * MANY)
    assert {level for (level, _), _ in edge_of(MANY)} == {1, 2}
    assert edge.root() == root_of([leaf] * MANY)
    assert len(edge.taken()) == MANY // WIDTH + 1 + 2
