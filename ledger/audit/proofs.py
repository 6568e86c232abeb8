"""Proofs: the queries about the tree, answered from its tiles and heads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from google.protobuf.message import Message

from ledger.audit.errors import TreeBehind, TreeHeadNotFound, TreeSizeAhead
from ledger.audit.merkle import NodeHash, consistency_proof, inclusion_proof
from ledger.audit.tiles import Place, node_of, places_of
from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.postgres import sql_blocks
from ledger.v1 import audit_pb2
from ledger.wire import timestamp
from projections.log_head import LogHead

SQL: Final = sql_blocks("ledger.audit", "tree.sql")

WAIT_MOST_S: Final = 5.0
POLL_S: Final = 0.02
TRAVEL_S: Final = 0.05
"""What is kept of a deadline for the answer to travel."""

Rows: TypeAlias = Callable[..., Awaitable[list[tuple[Any, ...]]]]
"""Runs a statement with its parameters, and returns the rows; raises ReadsUnavailable."""


class Head(NamedTuple):
    """A signed head as it is stored."""

    number: int
    tree_size: int
    root_hash: bytes
    note: str
    signed_at: datetime | None


class Proofs:
    """The tree of one ledger. Each query takes the request and the seconds that remain for it.

    All raise InvalidCommand for a malformed request, PositionAheadOfHead when what must be covered is not in the log,
    TreeBehind when it was not signed in time, and ReadsUnavailable.
    """

    def __init__(self, rows: Rows, log_head: LogHead | None = None) -> None:
        """`log_head` is needed where `rows` don't come from where commands are recorded."""
        self._rows: Final = rows
        self._log_head: Final = log_head or LogHead(rows)
        self.by_rpc: Final[Mapping[str, Callable[[Any, float | None], Awaitable[Message]]]] = {
            "GetTreeHead": self.get_tree_head,
            "GetInclusionProof": self.get_inclusion_proof,
            "GetConsistencyProof": self.get_consistency_proof,
        }
        """What is answered here, by the name of the rpc."""

    async def get_tree_head(
        self, request: audit_pb2.GetTreeHeadRequest, remaining_s: float | None
    ) -> audit_pb2.GetTreeHeadResponse:
        """Raises TreeHeadNotFound."""
        _require_not_negative(request, "tree_size", "min_position")
        newest = await self._newest(request.min_position, remaining_s)
        head = newest
        if request.tree_size:
            found = await self._rows(SQL.head_of_size, {"tree_size": request.tree_size})
            if not found:
                raise TreeHeadNotFound(tree_size=request.tree_size)
            head = Head(*found[0])
        if not head.number:
            raise TreeHeadNotFound(tree_size=0)
        assert head.signed_at is not None
        message = audit_pb2.TreeHead(
            tree_size=head.tree_size,
            root_hash=bytes(head.root_hash),
            signed_note=head.note,
            signed_at=timestamp(head.signed_at),
        )
        return audit_pb2.GetTreeHeadResponse(tree_head=message, position=newest.tree_size)

    async def get_inclusion_proof(
        self, request: audit_pb2.GetInclusionProofRequest, remaining_s: float | None
    ) -> audit_pb2.GetInclusionProofResponse:
        """Raises TreeSizeAhead."""
        _require_not_negative(request, "tree_size", "min_position")
        position = request.position
        if position < 1 or (request.tree_size and position > request.tree_size):
            raise InvalidCommand(FieldViolation("position", "must be 1 to tree_size"))
        newest = await self._newest(request.min_position, remaining_s)
        size = request.tree_size or newest.tree_size
        if max(size, position) > newest.tree_size:
            raise TreeSizeAhead(tree_size=max(size, position), newest=newest.tree_size)
        hashes, leaf = await self._with_nodes(
            lambda node: (inclusion_proof(position - 1, size, node), node(0, position - 1))
        )
        return audit_pb2.GetInclusionProofResponse(
            hashes=hashes, position=newest.tree_size, tree_size=size, leaf_hash=leaf
        )

    async def get_consistency_proof(
        self, request: audit_pb2.GetConsistencyProofRequest, remaining_s: float | None
    ) -> audit_pb2.GetConsistencyProofResponse:
        """Raises TreeSizeAhead."""
        _require_not_negative(request, "second_tree_size", "min_position")
        first = request.first_tree_size
        if first < 1 or (request.second_tree_size and first > request.second_tree_size):
            raise InvalidCommand(FieldViolation("first_tree_size", "must be 1 to second_tree_size"))
        newest = await self._newest(request.min_position, remaining_s)
        second = request.second_tree_size or newest.tree_size
        if max(first, second) > newest.tree_size:
            raise TreeSizeAhead(tree_size=max(first, second), newest=newest.tree_size)
        hashes = await self._with_nodes(lambda node: consistency_proof(first, second, node))
        return audit_pb2.GetConsistencyProofResponse(hashes=hashes, position=newest.tree_size, second_tree_size=second)

    # --- heads and tiles ---------------------------------------------------------------------------------------------

    async def _newest(self, min_position: int, remaining_s: float | None) -> Head:
        """The newest head, once it covers a position; size and number are 0 if none was ever signed."""
        clock = asyncio.get_running_loop().time
        patience_s = WAIT_MOST_S if remaining_s is None else min(WAIT_MOST_S, max(0.0, remaining_s - TRAVEL_S))
        deadline, in_log = clock() + patience_s, False
        while True:
            found = await self._rows(SQL.newest_head)
            head = Head(*found[0]) if found else Head(0, 0, b"", "", None)
            if head.tree_size >= min_position:
                return head
            if not in_log:
                await self._log_head.require(min_position)
                in_log = True
            if clock() + POLL_S > deadline:
                raise TreeBehind(tree_size=head.tree_size, min_position=min_position)
            await asyncio.sleep(POLL_S)

    async def _with_nodes(self, use: Callable[[NodeHash], Any]) -> Any:
        """What comes of using the hashes of complete subtrees, of which all that it takes are read at once."""
        places = places_of(use)
        wanted = {"levels": [level for level, _ in places], "indexes": [index for _, index in places]}
        rows = await self._rows(SQL.tiles, wanted)
        tiles: dict[Place, bytes] = {(level, index): bytes(hashes) for level, index, hashes in rows}
        return use(node_of(tiles.__getitem__))


def _require_not_negative(request: Any, *fields: str) -> None:
    """Raise InvalidCommand, with every one of the fields that is negative, if one is."""
    wrong = [FieldViolation(field, "must not be negative") for field in fields if getattr(request, field) < 0]
    if wrong:
        raise InvalidCommand(*wrong)
