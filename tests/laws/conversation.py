"""One run: a client talks with the server and with the model, and both have to say the same."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

from checks import Row, check_rows, eventually
from model import answer, expiry
from read_side import as_text, fold, tables
from readings import listed, read
from refused import Refused, refused_as, same
from stage import Stage
from steps import Scene, batch_of
from tally import Tally
from world import World, changed

from ledger.v1.account_pb2 import GetAccountBalanceRequest, GetAccountRequest
from ledger.v1.batch_pb2 import ExecuteBatchResponse
from ledger.v1.ledger_pb2 import SORT_ORDER_OLDEST_FIRST
from ledger.v1.payment_pb2 import GetPaymentRequest, VoidPaymentRequest
from ledger.v1.transfer_pb2 import GetTransferRequest

LONGER_THAN_ANY_HOLD = timedelta(days=40)


class Conversation:
    """A run on a stage: the scene as the model has it, and what was sent until then."""

    def __init__(self, stage: Stage, tally: Tally) -> None:
        stage.begin()
        self.stage, self.tally = stage, tally
        self.scene = Scene(World(stage.now, stage.head), f"r{stage.runs}-")
        self.started_at, self.started_after = stage.now, stage.head
        self.sent: list[Any] = []
        self.listings: list[Listing] = []
        self.agree = True
        """False once server and model have said different things."""

    @property
    def world(self) -> World:
        return self.scene.world

    def wait(self, by: timedelta) -> None:
        """Let time pass."""
        if by:
            self.stage.move(by)
            self.world.now = self.stage.now

    # --- commands ----------------------------------------------------------------------------------------------------

    def send(self, request: Any) -> Any:
        """Send a request that writes, and return what both say to it."""
        self.agree = False
        heard = _in_short(self.stage.call(request))
        swept = self._swept()
        after, foretold = answer(self.world, request)
        while swept and not same(heard, _in_short(foretold)):
            # What the sweeper recorded meanwhile may have come before.
            self._sweep(swept.popleft())
            after, foretold = answer(self.world, request)
        assert same(heard, _in_short(foretold)), _difference(request, heard, _in_short(foretold))
        self.scene = self.scene._replace(world=after)
        while swept:
            self._sweep(swept.popleft())
        self.agree = True
        self.sent.append(request)
        self.tally.count(request, foretold)
        return foretold

    def await_sweeper(self) -> None:
        """Let the sweeper record all that has expired."""
        if not self.world.expired():
            return
        self.agree = False
        self.stage.sweep()
        eventually(self._all_is_swept)
        self.agree = True

    def _all_is_swept(self) -> bool:
        for row in self._swept():
            self._sweep(row)
        return not self.world.expired()

    def _swept(self) -> deque[Row]:
        """What the sweeper has recorded, if anything has expired. The model hears of it from the log."""
        if not self.world.expired():
            return deque()
        return deque(row for row in self.stage.log_after(self.world.head) if row.topic == "AuthorizationExpired")

    def _sweep(self, row: Row) -> None:
        assert row.position == self.world.head + 1, f"not where it has to be: {row}"
        self.tally.count_one("Sweeper", "done")
        after = expiry(self.world, row.stream.removeprefix("payment/"), row.recorded_at)
        self.scene = self.scene._replace(world=after)

    # --- reads -------------------------------------------------------------------------------------------------------

    def look(self, request: Any) -> None:
        """Read one thing, as of now."""
        self.await_sweeper()
        request = changed(request, min_position=self.world.head)
        self._compare(request, self.stage.call(request), read(self.world, request))

    def look_at_all(self) -> None:
        """Read everything that there is."""
        for account_id in self.world.accounts:
            self.look(GetAccountRequest(account_id=account_id))
            self.look(GetAccountBalanceRequest(account_id=account_id))
        for payment_id in self.world.payments:
            self.look(GetPaymentRequest(payment_id=payment_id))
        for transfer_id in self.world.transfers:
            self.look(GetTransferRequest(transfer_id=transfer_id))

    def browse(self, request: Any) -> None:
        """Read the first page of a list. What the others have to say is settled by then."""
        self.await_sweeper()
        request = changed(request, min_position=self.world.head)
        self._turn(Listing(request, listed(self.world, request), self.world.head))

    def turn(self, which: int, page_size: int) -> None:
        """Read the next page of a list, with as many things as one likes."""
        listing = self.listings.pop(which % len(self.listings))
        listing.request = changed(listing.request, page_size=page_size)
        self._turn(listing)

    def turn_in_another_list(self, which: int) -> None:
        """A page token goes with all else that was asked at first."""
        request = self.listings[which % len(self.listings)].request
        other = changed(request, order=SORT_ORDER_OLDEST_FIRST if request.order != SORT_ORDER_OLDEST_FIRST else 0)
        refused = Refused("INVALID_ARGUMENT", "INVALID_REQUEST", {}, ("page_token",))
        self._compare(other, self.stage.call(other), refused)

    def _turn(self, listing: Listing) -> None:
        reply = self.stage.call(listing.request)
        self._compare(listing.request, listing.without_token(reply), listing.page())
        if listing.turned(reply):
            self.listings.append(listing)

    def _compare(self, request: Any, heard: Any, foretold: Any) -> None:
        self.agree = same(heard, foretold)
        assert self.agree, _difference(request, heard, foretold)
        self.tally.count(request, foretold)

    # --- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End all that is open, and check what has been recorded by means that have nothing to do with the model."""
        if not self.agree:
            self.stage.is_tidy = False
            return
        while self.listings:
            self.turn(0, 3)
        self._end_all_holds()
        self.look_at_all()
        rows = self.stage.log_after(self.started_after)
        assert self.world.head == self.started_after + len(rows)
        check_rows(rows, self.started_after)
        _, found = tables(self.stage.dsn, "main", self.started_after)
        for name, expected in fold(rows).items():
            assert as_text(found[name]) == as_text(expected)

    def _end_all_holds(self) -> None:
        """So that nothing of this run happens in another."""
        if self.stage.runs % 2:
            self.wait(LONGER_THAN_ANY_HOLD)
        held = [payment_id for payment_id, each in self.world.payments.items() if each.amount_capturable]
        if held and not self.stage.runs % 2:
            self.send(batch_of([VoidPaymentRequest(payment_id=payment_id) for payment_id in held]))
        self.await_sweeper()


class Listing:
    """A list that is read page by page: what all of it has to be, and how much was read."""

    def __init__(self, request: Any, things: list[Any] | Refused, position: int) -> None:
        self.request, self._things, self._position, self._read = request, things, position, 0

    def page(self) -> Any:
        """What the next page has to be: its things, its position, and whether more come."""
        if isinstance(self._things, Refused):
            return self._things
        stop = self._read + (self.request.page_size or 100)
        return [self._things[self._read : stop], self._position, stop < len(self._things)]

    def without_token(self, reply: Any) -> Any:
        """The same of a response."""
        if isinstance(reply, Refused):
            return reply
        (name,) = (field.name for field in reply.DESCRIPTOR.fields if field.is_repeated)
        return [list(getattr(reply, name)), reply.position, bool(reply.next_page_token)]

    def turned(self, reply: Any) -> bool:
        """Go on to the next page, if there is one."""
        if isinstance(reply, Refused) or not reply.next_page_token:
            return False
        self._read += self.request.page_size or 100
        self.request = changed(self.request, page_token=reply.next_page_token)
        return True


def _in_short(reply: Any) -> Any:
    """A reply so that two can be compared: of a batch its results, and its position at last."""
    if isinstance(reply, ExecuteBatchResponse):
        names = [each.WhichOneof("result") for each in reply.results]
        results = [getattr(each, name) for each, name in zip(reply.results, names, strict=True)]
        said = [refused_as(each) if name == "error" else each for each, name in zip(results, names, strict=True)]
        return [*said, reply.position]
    if isinstance(reply, list):
        return [*reply, max((each.position for each in reply if not isinstance(each, Refused)), default=0)]
    return reply


def _difference(request: Any, heard: Any, foretold: Any) -> str:
    kind = request.DESCRIPTOR.name
    return f"\n--- {kind}\n{request}\n--- the server says\n{heard}\n--- the model says\n{foretold}"
