"""Becomes a program of Postgres that runs as the right user and ends with the process that started it.

Run by `ledger.embedded_process` as a script of its own: rights are dropped and the tie to the parent is made between
fork and exec, where a process with threads (as a gRPC server is) may run next to nothing safely. It imports only the
standard library, to start in a few hundredths of a second and to have all it needs loaded before it drops root.
"""

import ctypes
import os
import signal
import struct
import sys
from pathlib import Path

REFUSED = 77
"""The exit status that says: the program was not started, and the last line on stderr is the reason."""

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 1, 8, 27, 28
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_SETPCAP = 1, 2, 8
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The program cannot be started as asked; the text says what to do."""


def main(parent: int, lifeline: str, account: str, folder: str, *command: str) -> None:
    """Replace this process by `command`, which works in `folder`, a folder inside the data folder.

    `account` is `name:uid:gid:group,group...` of the user to become, or empty to stay who we are. `lifeline` is the
    number of a socket that the parent holds the other end of, or empty to use Linux's parent-death signal.
    """
    # A supervisor started with nohup or in the background passes an ignored SIGINT on: ours has to end us.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if account:
        _become(account, folder, program=command[0])
    # Only now: a change of user clears the parent-death signal. SIGINT is a fast shutdown, with a checkpoint: SIGQUIT
    # would be quicker and as safe, but leave the next start to replay the log.
    if lifeline:
        _watch(int(lifeline))
    else:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:
        raise Refused("the process that started this one is gone")
    os.execv(command[0], command)  # noqa: S606


def _become(account: str, folder: str, program: str) -> None:
    name, uid, gid, groups = account.split(":")
    needs = {program: os.R_OK | os.X_OK, folder: os.R_OK | os.W_OK | os.X_OK}
    # What lies in another user's folder, as a configuration that loads libraries, is not to see what root sees.
    is_roots = Path(folder).parent.stat().st_uid == 0
    if sys.platform == "linux":
        _prctl(_PR_SET_KEEPCAPS, 1)  # Permitted, not effective, and gone at exec unless raised below.
    try:
        os.setgroups([int(group) for group in groups.split(",")])
        os.setgid(int(gid))
        os.setuid(int(uid))
    except OSError as error:
        raise Refused(f"Postgres does not run as root, and becoming user {name} failed: {error.strerror}") from error
    blocked = _blocked(needs)
    if blocked and not (sys.platform == "linux" and is_roots and _raise_capability(needs)):
        raise Refused(
            f"Postgres does not run as root, and user {name}, as whom it runs instead, cannot reach {blocked}: "
            "move the data and the program to where everybody may go, or start this as an ordinary user"
        )


def _blocked(needs: dict[str, int]) -> str:
    """The first folder or file in the way of `needs`, or "" when all can be reached."""
    for path, mode in needs.items():
        if not os.access(path, mode):
            above = [str(folder) for folder in reversed(Path(path).parents) if not os.access(folder, os.X_OK)]
            return above[0] if above else path
    return ""


def _raise_capability(needs: dict[str, int]) -> bool:
    """Give the program one capability of root's: passing folders that are closed to its user. True if that suffices.

    Without it a clone, or a data folder, below /root or in a `mktemp -d` would not work, short of opening folders that
    are not ours. Reading is enough, as the cluster belongs to the user; but containers lack that capability and have
    the one that also writes. Postgres probes its own binary with access(2), which looks at the capabilities of a user
    other than root only where those are not tied to the user id (SECBIT_NO_SETUID_FIXUP).
    """
    permitted = _permitted_capabilities()
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        mask = 1 << capability
        try:
            _capset(mask | 1 << _CAP_SETPCAP, permitted, inheritable=mask)
            _prctl(_PR_SET_SECUREBITS, _prctl(_PR_GET_SECUREBITS) | _SECBIT_NO_SETUID_FIXUP)
            if not _blocked(needs):
                _capset(mask, mask, inheritable=mask)
                _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
                return True
        except OSError:  # Not ours to give, as in a container: try the next.
            continue
    return False


def _watch(lifeline: int) -> None:
    """Fork a process that ends the program when the other end of `lifeline` is closed, as every kind of death does."""
    program = os.getpid()
    if os.fork() == 0:
        while os.read(lifeline, 1):
            pass
        # Still our parent: so it lives, and its number has not been given to another process.
        if os.getppid() == program:
            os.kill(program, signal.SIGINT)
        os._exit(0)
    os.set_inheritable(lifeline, False)


def _prctl(option: int, *arguments: int) -> int:
    result = int(_libc.prctl(option, *[ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
    return result


def _permitted_capabilities() -> int:
    """The permitted capabilities of this process among the first 32, which hold all that are of use here."""
    sets = ctypes.create_string_buffer(struct.calcsize("=6I"))
    if _libc.capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), sets) != 0:
        return 0
    return int(struct.unpack("=6I", sets.raw)[1])


def _capset(effective: int, permitted: int, inheritable: int) -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, struct.pack("=6I", effective, permitted, inheritable, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), *sys.argv[2:])
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        sys.exit(REFUSED)
