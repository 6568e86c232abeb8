"""Which role may call which rpc. What is not in the table, nobody may."""

from __future__ import annotations

from typing import Final

from ledger.callers import Caller, PermissionDenied, Role

_PAYMENTS: Final = frozenset({Role.PAYMENTS})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_WRITERS: Final = frozenset({Role.PAYMENTS, Role.OPERATOR})
_AUDITOR: Final = frozenset({Role.AUDITOR})
_READERS: Final = frozenset({Role.AUDITOR, Role.ANALYST})

PERMITTED: Final[dict[str, frozenset[Role]]] = {
    # AccountService
    "OpenAccount": _OPERATOR,
    "SetCreditLimit": _OPERATOR,
    "FreezeAccount": _OPERATOR,
    "UnfreezeAccount": _OPERATOR,
    "CloseAccount": _OPERATOR,
    "GetAccount": _OPERATOR | _READERS,
    "ListAccounts": _OPERATOR | _READERS,
    "GetAccountBalance": _OPERATOR | _READERS,
    "ListEntries": _OPERATOR | _READERS,
    # PaymentService
    "AuthorizePayment": _PAYMENTS,
    "IncrementAuthorization": _PAYMENTS,
    "CapturePayment": _PAYMENTS,
    "VoidPayment": _PAYMENTS,
    "RefundPayment": _PAYMENTS,
    "GetPayment": _PAYMENTS | _READERS,
    "ListPayments": _PAYMENTS | _READERS,
    # TransferService
    "PostTransfer": _PAYMENTS,
    "GetTransfer": _PAYMENTS | _READERS,
    "ListTransfers": _PAYMENTS | _READERS,
    # BatchService: each command in it is held against its own rpc besides.
    "ExecuteBatch": _WRITERS,
    # AuditService
    "ReadEvents": _AUDITOR,
    "GetTreeHead": _AUDITOR,
    "GetInclusionProof": _AUDITOR,
    "GetConsistencyProof": _AUDITOR,
    "GetTrialBalance": _READERS,
}


def require_permitted(caller: Caller, rpc: str) -> None:
    """Raise PermissionDenied if none of the caller's roles is for this rpc, named as in the contract."""
    if caller.roles is not None and not caller.roles & PERMITTED.get(rpc, frozenset()):
        raise PermissionDenied(role=" and ".join(sorted(caller.roles)), rpc=rpc)
