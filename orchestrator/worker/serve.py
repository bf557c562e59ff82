"""The worker's process after its keeper has forked off: says hello, then does what it is told until it is told bye."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Dict, NoReturn

__all__ = ["serve"]

_PDEATHSIG = 1


def serve(options: Dict[str, str], keeper: int, began: float) -> NoReturn:
    """Serves one family until BYE; ends the process."""
    faulthandler.enable(all_threads=False)  # short, so that the last lines hold all of it
    bootstrapped = time.monotonic()
    from orchestrator.worker.desk import Desk
    from orchestrator.worker.messages import Post
    from orchestrator.worker.segments import SegmentPool, SegmentViews
    from orchestrator.worker.transport import ZmqTransport

    fd = int(options["segments"])
    side = socket.socket(fileno=fd) if fd >= 0 else None
    post = Post(SegmentPool(side.dup() if side else None), SegmentViews(side))
    keys = None
    if "keys" in options:
        from orchestrator.worker.curve import read_keys

        keys = read_keys(options["keys"])
        os.unlink(options["keys"])
    transport = ZmqTransport(options["address"], bind=False, keys=keys)
    times = {
        "interpreter": began - float(options["spawned"]),
        "bootstrap": bootstrapped - began,
        "wire": time.monotonic() - bootstrapped,
    }
    desk = Desk(transport, post, options["file"], options["class"], times, keeper)
    _guard(keeper, desk)
    desk.hello()
    desk.work()
    _end(desk)


def _guard(keeper: int, desk: Any) -> None:
    """The second guard, for when the keeper itself is killed."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError) as error:
        sys.stderr.write(f"no parent-death signal here ({error}); the I/O thread looks after the parent\n")
    if os.getppid() != keeper:
        os._exit(70)
    signal.signal(signal.SIGINT, desk.interrupted)
    os.register_at_fork(after_in_child=desk.disown)
    threading.Thread(target=desk.stand_by, name="orchestrator-io", daemon=True).start()


def _end(desk: Any) -> NoReturn:
    """Ends without waiting for threads that a family left running."""
    desk.close()
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 - the interpreter's own end would wait for the family's threads
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
