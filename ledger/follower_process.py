"""The follower of a server, in a process of its own: keeping read models then never keeps a payment waiting.

In one process the two would share Python's lock, and a fifth of the server's time was the follower's. They are tied by
two pipes. The server tells of appends and of positions that somebody waits for; the follower, how far it has come. When
the server ends, however it does, its pipe closes, and the follower ends as well. When the follower ends before that, it
is started again: whatever it had in hand was recorded with its checkpoint or not at all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

import structlog

from ledger import collector, log_output
from projections.arrivals import Arrivals
from projections.follower import STOP_PATIENCE_S, Follower

AGAIN_LEAST_S: Final = 0.2
AGAIN_MOST_S: Final = 5.0

_STOPPED: Final = "stopped"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the process is told first. By its pipe: the connection string is nobody else's to see."""

    dsn: str
    ledger: str
    log_level: str
    log_format: str
    standby_reads: bool = False


class FollowerProcess:
    """Starts the process, keeps it running, and passes on what the two have to tell each other."""

    def __init__(self, terms: Terms) -> None:
        self._terms: Final = terms
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe_lock: Final = threading.Lock()
        """Held to write to the process and to close its pipe: the number of a closed one may be a connection's next."""
        self._heard = False
        """Whether the process has said anything yet."""
        self._stopping: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._keep, name=f"follower-{terms.ledger}", daemon=True)
        self.arrivals: Final = Arrivals(on_wait=self._ask_for)
        """Tells coroutines in this process when the checkpoint has passed a position."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when it has ended. A batch in hand is finished, or given up as a whole if that takes long."""
        self._stopping.set()
        self._hang_up()
        if (process := self._process) is not None and not self._heard:
            process.kill()  # It is still starting, and has nothing in hand.
        self._thread.join(2 * STOP_PATIENCE_S)
        if (process := self._process) is not None and self._thread.is_alive():
            process.kill()
            self._thread.join()

    def wake(self) -> None:
        """Say that there may be something new; from any thread."""
        self._tell(b"\n")

    def _ask_for(self, position: int) -> None:
        self._tell(b"%d\n" % position)

    def _tell(self, line: bytes) -> None:
        """Without waiting: a full pipe says enough, and a process that has ended looks for itself when it is back."""
        with self._pipe_lock:
            process = self._process
            if process is not None and process.stdin is not None and not process.stdin.closed:
                with suppress(BlockingIOError, BrokenPipeError):
                    os.write(process.stdin.fileno(), line)

    def _hang_up(self) -> None:
        with self._pipe_lock:
            process = self._process
            if process is not None and process.stdin is not None:
                process.stdin.close()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        again_s = AGAIN_LEAST_S
        while not self._stopping.is_set():
            self._heard = False
            try:
                why = self._run()
            except Exception as error:  # Whatever it is: a thread that just ended would be noticed by nobody.
                why = f"{type(error).__name__}: {error}"
            if self._heard:
                again_s = AGAIN_LEAST_S
            if not self._stopping.is_set():
                log.error("follower_ended", ledger=self._terms.ledger, why=why, again_in_s=again_s)
                self._stopping.wait(again_s)
                again_s = min(2 * again_s, AGAIN_MOST_S)

    def _run(self) -> str:
        """Run the process to its end, and tell which that was."""
        with self._started() as process:
            self._process = process
            if self._stopping.is_set():
                self._hang_up()
            try:
                self._listen(process)
            finally:
                self._hang_up()
            return f"it exited with {process.wait()}"

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", __name__]
        # A group of its own: Ctrl-C is for the server, which tells it to end.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)  # noqa: S603
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # It has ended already: that is seen when it is listened to.
            # Past the buffer: what stays in one would be written when the pipe is closed, and fail there.
            os.write(process.stdin.fileno(), json.dumps(asdict(self._terms)).encode() + b"\n")
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Hear of arrivals until the process ends."""
        assert process.stdout is not None
        for line in process.stdout:
            self._heard = True
            if line.strip() == _STOPPED.encode():
                self.arrivals.release()
            else:
                self.arrivals.reached(int(line))


# --- in the process --------------------------------------------------------------------------------------------------


class _Reported(Arrivals):
    """Arrivals that the server hears of."""

    def reached(self, position: int) -> None:
        super().reached(position)
        _report(position)

    def release(self) -> None:
        super().release()
        _report(_STOPPED)


def _report(what: object) -> None:
    with suppress(BrokenPipeError):  # The server has ended: so does this process, right away.
        os.write(sys.stdout.fileno(), f"{what}\n".encode())


def main() -> None:
    """Follow until the server closes its pipe."""
    for each in (signal.SIGINT, signal.SIGTERM):  # Sent to all that run in a container, say: the server ends this one.
        signal.signal(each, signal.SIG_IGN)
    terms = Terms(**json.loads(sys.stdin.readline()))
    log_output.configure(terms.log_level, terms.log_format)
    collector.settle()
    arrivals = _Reported(on_wait=lambda _: None)  # Nobody waits in this process.
    follower = Follower(terms.dsn, terms.ledger, arrivals=arrivals, standby_reads=terms.standby_reads)
    follower.start()
    for line in sys.stdin:
        if line.strip():
            arrivals.ask_for(int(line))
        follower.wake()
    follower.stop()


if __name__ == "__main__":
    main()
