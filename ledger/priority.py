"""The priority of a thread that all others wait for."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

_NICE: Final = -10


def go_first() -> bool:
    """Have the calling thread, and those that it will start, run before others of the machine; whether that is so.

    It takes root, CAP_SYS_NICE or RLIMIT_NICE, and Linux, where a thread has a priority of its own. Without, nothing is
    changed.
    """
    if sys.platform != "linux":
        return False
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    except PermissionError:
        return False
    return True
