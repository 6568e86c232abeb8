"""Reads and lists that a run may ask for, made requests when the scene is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from steps import Scene
from world import moment_of, stamp

from ledger.v1.account_pb2 import (
    GetAccountBalanceRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListEntriesRequest,
)
from ledger.v1.payment_pb2 import GetPaymentRequest, ListPaymentsRequest
from ledger.v1.transfer_pb2 import GetTransferRequest, ListTransfersRequest


class Moment(NamedTuple):
    """When something of this run was recorded or took effect, or so many microseconds after that."""

    which: int
    later: int

    def at(self, scene: Scene) -> datetime:
        lines = [entry for entries in scene.world.entries.values() for entry in entries]
        moments = [moment for moment, _ in scene.world.heads] + [moment_of(each.effective_at) for each in lines]
        return moments[self.which % len(moments)] + timedelta(microseconds=self.later)


class KnownAt(NamedTuple):
    """So many events ago, or at a moment; or neither, which is now."""

    events_ago: int | None
    moment: Moment | None

    def fields(self, scene: Scene) -> dict[str, Any]:
        if self.events_ago is not None:
            return {"at_position": max(1, scene.world.head - self.events_ago)}
        return {"recorded_at": stamp(self.moment.at(scene))} if self.moment else {}


class Look(NamedTuple):
    """At one thing."""

    kind: type
    id: str
    known_at: KnownAt
    effective_at: Moment | None

    def request(self, scene: Scene) -> Any:
        names = {field.name for field in self.kind.DESCRIPTOR.fields}
        fields = {name: value for name, value in self.known_at.fields(scene).items() if name in names}
        (id_field,) = names & {"account_id", "payment_id", "transfer_id"}
        if "effective_at" in names and self.effective_at:
            fields["effective_at"] = stamp(self.effective_at.at(scene))
        return self.kind(**{id_field: scene.id(self.id)}, **fields)


class ListOf(NamedTuple):
    """A list. Filters that it doesn't have are left out; and what was there before this run."""

    kind: type
    account: str
    payer: str
    payee: str
    kinds: Sequence[int]
    currency_code: str
    reference: str
    by: str
    """What the times are about, if that can be chosen: "recorded" or "effective"."""

    since: Moment | None
    until: Moment | None
    order: int
    page_size: int

    def request(self, scene: Scene) -> Any:
        of_one = self.kind is ListEntriesRequest
        names = {"account_id": self.account or ("alice" if of_one else "")}
        names |= {"payer_account_id": self.payer, "payee_account_id": self.payee}
        since, until = self.since and self.since.at(scene), self.until and self.until.at(scene)
        if not of_one:
            since = max(since or scene.started_at, scene.started_at)
        values: dict[str, Any] = {
            **{field: scene.id(name) for field, name in names.items() if name},
            **{name: self._some_of(name) for name in ("kinds", "statuses", "states")},
            "currency_code": self.currency_code,
            "reference": self.reference,
            "order": self.order,
            "page_size": self.page_size,
        }
        for about in ("opened", "authorized", self.by if of_one else "recorded"):
            values |= {f"{about}_since": since and stamp(since), f"{about}_until": until and stamp(until)}
        known = {field.name for field in self.kind.DESCRIPTOR.fields}
        return self.kind(**{name: value for name, value in values.items() if name in known})

    def _some_of(self, name: str) -> list[int]:
        """The kinds, as values of the enum of a field."""
        field = self.kind.DESCRIPTOR.fields_by_name.get(name)
        most = len(field.enum_type.values) - 1 if field else 1
        return sorted({each % most + 1 for each in self.kinds})


LOOKS = (GetAccountRequest, GetAccountBalanceRequest, GetPaymentRequest, GetTransferRequest)
LISTS = (ListAccountsRequest, ListPaymentsRequest, ListTransfersRequest, ListEntriesRequest)
