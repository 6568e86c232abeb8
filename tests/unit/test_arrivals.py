"""Who waits for a position is told when it has come, from any thread, and leaves nothing behind."""

import asyncio
import threading

import pytest

from projections.arrivals import Arrivals


def test_a_position_that_has_come_is_not_waited_for() -> None:
    """And nobody is called for it."""
    called: list[int] = []
    arrivals = Arrivals(on_wait=called.append)
    arrivals.reached(7)
    asyncio.run(arrivals.wait_for(7))
    assert not called
    assert not arrivals.awaited.is_set()


def test_each_waits_for_its_own_position() -> None:
    """Reports come from another thread; only those whose position has come are told."""
    arrivals = Arrivals(on_wait=lambda _: None)

    async def main() -> None:
        first, second = (asyncio.create_task(arrivals.wait_for(position)) for position in (3, 5))
        await asyncio.sleep(0)
        assert arrivals.awaited.is_set()
        threading.Thread(target=arrivals.reached, args=(4,)).start()
        await first
        assert not second.done()
        threading.Thread(target=arrivals.reached, args=(5,)).start()
        await second

    asyncio.run(main())
    assert not arrivals.awaited.is_set()


def test_whoever_gives_up_leaves_nothing_behind() -> None:
    """A position that never comes costs nothing once its waiter is gone."""
    arrivals = Arrivals(on_wait=lambda _: None)

    async def main() -> None:
        async with asyncio.timeout(0.01):
            await arrivals.wait_for(10**9)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert not arrivals.awaited.is_set()


def test_waiting_that_has_become_pointless_ends() -> None:
    """Everybody is let go, so that they can find out why."""
    arrivals = Arrivals(on_wait=lambda _: None)

    async def main() -> None:
        waits = [asyncio.create_task(arrivals.wait_for(position)) for position in (1, 2)]
        await asyncio.sleep(0)
        threading.Thread(target=arrivals.release).start()
        await asyncio.gather(*waits)

    asyncio.run(main())
    assert arrivals.position == 0


def test_a_waiter_whose_loop_is_gone_does_no_harm() -> None:
    """As when a server ends while its follower still runs."""
    arrivals = Arrivals(on_wait=lambda _: None)
    loop = asyncio.new_event_loop()
    task = loop.create_task(arrivals.wait_for(1))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    arrivals.reached(1)


def test_what_is_asked_for_elsewhere_is_awaited_until_it_has_come() -> None:
    """By nobody in this process; a position that has come already is not."""
    arrivals = Arrivals(on_wait=lambda _: None)
    arrivals.reached(3)
    arrivals.ask_for(3)
    assert not arrivals.awaited.is_set()
    arrivals.ask_for(5)
    arrivals.ask_for(4)
    assert arrivals.awaited.is_set()
    arrivals.reached(4)
    assert arrivals.awaited.is_set()
    arrivals.reached(5)
    assert not arrivals.awaited.is_set()


def test_what_is_asked_for_elsewhere_and_is_not_in_the_log_is_forgotten() -> None:
    """Those who wait in this process are not: they are told when it comes, or give up."""
    arrivals = Arrivals(on_wait=lambda _: None)
    arrivals.ask_for(10**15)
    arrivals.at_head()
    assert not arrivals.awaited.is_set()

    async def main() -> None:
        waiting = asyncio.create_task(arrivals.wait_for(2))
        await asyncio.sleep(0)
        arrivals.at_head()
        assert arrivals.awaited.is_set()
        arrivals.reached(2)
        await waiting

    asyncio.run(main())
