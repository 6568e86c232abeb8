"""Laws of the ledger: whatever clients send, in whatever order and at whatever time, it answers as its protos say.

A machine drives the real server over gRPC, and a model in plain Python beside it. `make test` runs it a little, always
the same; `make test-laws` at length, and differently every time.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final

import drawing
import pytest
from asking import ListOf, Look
from conversation import Conversation
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from model import answer
from stage import INSTANT, Stage
from steps import Amount, Authorize, Capture, Leg, Open, Terms, Transfer, batch_of, others
from tally import Tally
from world import changed

from ledger.v1.batch_pb2 import BATCH_MODE_ATOMIC, ExecuteBatchRequest

STEPS: Final = 50
RUNS: Final = int(os.environ.get("LAW_RUNS", "50"))
AT_LENGTH: Final = 2_000
"""Runs after which all that can happen has to have happened."""

OPENING: Final = [
    *(Open(name, "EUR", external=True) for name in ("bank", "scheme")),
    *(Open(name, "EUR") for name in ("alice", "shop", "new-1")),
    Open("bob", "EUR", limit=Amount("", 100), metadata={"a": "1"}),
    Open("rich", "EUR", limit=Amount("most")),
    Open("yen-bank", "JPY", external=True),
    *(Open(name, "JPY") for name in ("yumi", "zoe")),
    Open("dinar-bank", "KWD", external=True),
    *(Open(name, "KWD") for name in ("basim", "dana")),
    Transfer(
        "given",
        [
            Leg("bank", "alice", Amount("", 300)),
            Leg("yen-bank", "yumi", Amount("", 300)),
            Leg("dinar-bank", "basim", Amount("", 300)),
        ],
    ),
    Authorize("p1", "alice", "shop", Amount("", 50), reference="order-1"),
    Authorize("p2", "scheme", "bob", Amount("", 40)),
    Capture(1, "capturable", "x1", Amount("", 10), keep_remainder=True),
]
"""What every run begins with: some accounts, money in some of them, and two payments."""


class Machine(RuleBasedStateMachine):
    """Steps in any order, each checked at once, and the whole at the end.

    What is drawn never depends on what was answered, nor does whether a step can be taken: so a failure that hangs on
    when the sweeper came by can be shrunk as well.
    """

    stage: ClassVar[Stage]
    tally: ClassVar[Tally]

    def __init__(self) -> None:
        super().__init__()
        self.talk = Conversation(self.stage, self.tally)

    def teardown(self) -> None:
        self.talk.end()
        if self.stage.runs % 100 == 0:
            print(f"{self.stage.runs} runs, {self.tally.total} commands and reads", flush=True)

    @initialize()
    def open(self) -> None:
        self._send_batch([(step, Terms()) for step in OPENING])

    @rule(step=drawing.SETTINGS, terms=drawing.TERMS, tick=drawing.TICKS)
    def set(self, step: Any, terms: Terms, tick: int) -> None:
        self._send(step, terms, tick)

    @rule(step=drawing.AUTHORIZATIONS, terms=drawing.TERMS, tick=drawing.TICKS)
    def authorize(self, step: Any, terms: Terms, tick: int) -> None:
        self._send(step, terms, tick)

    @rule(step=drawing.CHANGES, terms=drawing.TERMS, tick=drawing.TICKS)
    def change(self, step: Any, terms: Terms, tick: int) -> None:
        self._send(step, terms, tick)

    @rule(step=drawing.TRANSFERS, terms=drawing.TERMS, tick=drawing.TICKS)
    def transfer(self, step: Any, terms: Terms, tick: int) -> None:
        self._send(step, terms, tick)

    @rule(step=drawing.COMMANDS, elsewhere=drawing.BOOLEANS)
    def ask_in_vain(self, step: Any, elsewhere: bool) -> None:
        """Of a ledger that is not there, or on a condition that does not hold: that is rare where terms are drawn."""
        self._send(step, Terms(ledger="none") if elsewhere else Terms(conditions=[("alice", 1)]), 0)

    @rule(steps=drawing.BATCHES, mode=drawing.MODES, dry=drawing.RARELY)
    def batch(self, steps: Any, mode: int, dry: bool) -> None:
        self.talk.await_sweeper()
        self._send_batch(steps, mode, validate_only=dry)

    @rule(steps=drawing.SMALL_BATCHES, dry=drawing.RARELY)
    def atomic_batch(self, steps: Any, dry: bool) -> None:
        self.talk.await_sweeper()
        self._send_batch(steps, BATCH_MODE_ATOMIC, validate_only=dry)

    @rule(which=st.lists(drawing.WHICH, min_size=1, max_size=3), atomic=drawing.BOOLEANS)
    def retry_in_batch(self, which: list[int], atomic: bool) -> None:
        """What was sent before, all together."""
        self.talk.await_sweeper()
        single = [each for each in self.talk.sent if not isinstance(each, ExecuteBatchRequest)]
        if single:
            chosen = [changed(single[-1 - number % len(single)], ledger="", validate_only=False) for number in which]
            self.talk.send(batch_of(chosen, BATCH_MODE_ATOMIC if atomic else 0))

    def _send_batch(self, steps: list[tuple[Any, Terms]], mode: int = 0, **fields: Any) -> None:
        scene, requests = self.talk.scene, []
        for step, own_terms in steps:
            requests.append(own_terms.put_on(step.request(scene), scene))
            scene = scene._replace(world=answer(scene.world, requests[-1])[0])
        self.talk.send(batch_of(requests, mode, **fields))

    @rule(which=drawing.WHICH, terms=drawing.TERMS, tick=drawing.TICKS)
    def retry(self, which: int, terms: Terms, tick: int) -> None:
        """What was sent before."""
        self.talk.wait(tick * INSTANT)
        request = self.talk.sent[-1 - which % len(self.talk.sent)]
        if not isinstance(request, ExecuteBatchRequest):
            request = terms.put_on(changed(request, preconditions=()), self.talk.scene)
        self.talk.send(request)

    @rule(which=drawing.WHICH, other=drawing.WHICH)
    def differ(self, which: int, other: int) -> None:
        """What was sent before, with another value in one field."""
        requests = [each for each in self.talk.sent if not isinstance(each, ExecuteBatchRequest)]
        if requests:
            different = others(requests[-1 - which % len(requests)], self.talk.scene)
            self.talk.send(different[other % len(different)])

    @rule(look=drawing.LOOK_AT)
    def look(self, look: Look) -> None:
        self.talk.await_sweeper()
        self.talk.look(look.request(self.talk.scene))

    @rule(pages=drawing.PAGES)
    def browse(self, pages: ListOf) -> None:
        self.talk.await_sweeper()
        self.talk.browse(pages.request(self.talk.scene))

    @rule(which=drawing.WHICH, page_size=drawing.PAGE_SIZES)
    def turn(self, which: int, page_size: int) -> None:
        """The next page of a list that has been begun, if there is one."""
        if self.talk.listings:
            self.talk.turn(which, page_size)

    @rule(which=drawing.WHICH)
    def turn_in_another_list(self, which: int) -> None:
        if self.talk.listings:
            self.talk.turn_in_another_list(which)

    @rule(by=drawing.WAITS, sweeper=drawing.SWEEPER)
    def wait(self, by: int, sweeper: str) -> None:
        """The next command may come before what has expired is recorded, after that, or at the same time."""
        self.talk.wait(by * INSTANT)
        if sweeper == "quicker":
            self.talk.await_sweeper()
        elif sweeper == "as quick":
            self.stage.sweep()

    def _send(self, step: Any, terms: Terms, tick: int) -> None:
        self.talk.wait(tick * INSTANT)
        self.talk.send(terms.put_on(step.request(self.talk.scene), self.talk.scene))


# A failure may take a while to shrink; whatever the machine waits for has a limit of its own.
@pytest.mark.timeout(0)
def test_server_and_model_say_the_same(stage: Stage) -> None:
    """To every command, read and list; and what is recorded adds up."""
    tally = Tally()

    class OnStage(Machine):
        pass

    OnStage.stage, OnStage.tally = stage, tally
    profile = settings(
        max_examples=RUNS,
        stateful_step_count=STEPS,
        derandomize="LAW_RUNS" not in os.environ,
        deadline=None,
        # To explain a failure takes Hypothesis long here; the shrunk steps tell enough.
        phases=[phase for phase in Phase if phase is not Phase.explain],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(OnStage, settings=profile)
    print(*tally.lines(), sep="\n")
    assert RUNS < AT_LENGTH or not tally.missing()
