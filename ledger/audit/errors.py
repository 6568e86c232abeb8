"""Why a question about the tree can't be answered."""

from __future__ import annotations

from ledger.domain.errors import Refusal


class TreeHeadNotFound(Refusal):
    """No tree head was signed at size {tree_size}."""

    code = "TREE_HEAD_NOT_FOUND"


class TreeBehind(Refusal):
    """The newest tree head is of size {tree_size} and did not reach {min_position} in time; try again."""

    code = "TREE_BEHIND"


class TreeSizeAhead(Refusal):
    """There is no signed tree of size {tree_size} yet: the newest is of size {newest}."""

    code = "TREE_SIZE_AHEAD_OF_HEAD"
