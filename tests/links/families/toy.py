"""A family for tests: each method is one thing that a model's code can do to its worker."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from orchestrator.worker import cancelled, progress


class Toy:
    """Holds nothing but what it was told to keep."""

    def __init__(self, checkpoint=None, *, placement=None, scale=2, steps=0):
        self.checkpoint = checkpoint
        self.placement = placement
        self.scale = scale
        self.kept = None
        self.ran = []
        self.report = {"scale": scale}
        for step in range(steps):
            progress("loading", step + 1, steps)
            time.sleep(0.06)

    def echo(self, value=None):
        return value

    def types(self, value):
        """The types of a list's items, as this side sees them."""
        return [f"{type(v).__module__}.{type(v).__qualname__}" for v in value]

    def bits(self, value):
        """An array's dtype, shape, order and bytes, so that the other side need not trust the wire."""
        value = np.asarray(value)
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        return [value.dtype.str, list(value.shape), order, value.tobytes("A"), bool(value.flags.writeable)]

    def make(self, spelling, shape, data, order="C"):
        """An array of this side's numpy from raw bytes."""
        return np.ndarray(tuple(shape), np.dtype(spelling), bytearray(data), order=order)

    def zeros(self, size):
        return np.zeros(size, np.uint8)

    def versions(self):
        return [sys.version.split()[0], np.__version__]

    def modules(self):
        return sorted(m for m in sys.modules if m.split(".")[0] == "orchestrator")

    def try_import(self, name):
        try:
            __import__(name)
        except ImportError as error:
            return str(error)
        return "imported"

    def path(self):
        return sys.path

    def variables(self):
        return dict(os.environ)

    def image(self, mode, size, data):
        from PIL import Image

        return Image.frombytes(mode, tuple(size), data)

    def image_facts(self, image):
        return [image.mode, list(image.size), image.tobytes()]

    def keep(self, value):
        self.kept = value

    def kept_sum(self):
        return float(np.asarray(self.kept).sum())

    def forget(self):
        self.kept = None

    def double(self, items):
        return [2 * item for item in items]

    def count(self, n, pause=0.0):
        try:
            for k in range(n):
                if pause:
                    time.sleep(pause)
                self.ran.append(k)
                yield k
        finally:
            self.ran.append("closed")

    def arrays(self, n, size):
        for k in range(n):
            yield np.full(size, k, np.uint8)

    def stumble(self):
        yield 1
        raise ValueError("stumbled")

    def log(self):
        return self.ran

    def nap(self, seconds, tag=None):
        time.sleep(seconds)
        self.ran.append(tag)
        return tag

    def wait_for(self, path, tag=None):
        """Until there is a file; before that it says that it has begun."""
        begin(path)
        while not os.path.exists(path):
            time.sleep(0.01)
        self.ran.append(tag)
        return tag

    def patient(self, seconds, path=""):
        begin(path)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not cancelled():
            time.sleep(0.01)
        self.ran.append("cancelled" if cancelled() else "finished")
        return cancelled()

    def tell(self, steps):
        for step in range(steps):
            progress("step", step + 1, steps)
        return steps

    def fail(self, message="no"):
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError(message) from error

    def memory(self):
        raise MemoryError("as much as you like")

    def devices(self):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two")

    def unsendable(self):
        return {"x": [1, object()]}

    def quit(self, code):
        sys.exit(code)

    def interrupt(self):
        raise KeyboardInterrupt

    def exit(self, code):
        os._exit(code)

    def crash(self, number):
        os.kill(os.getpid(), number)
        time.sleep(5)

    def fork(self):
        """Returns in the parent and in the child."""
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return "child" if child == 0 else "parent"

    def start_thread(self):
        threading.Thread(target=time.sleep, args=(600,)).start()
        return threading.active_count()

    def grandchild(self, seconds=600, own_session=False):
        return subprocess.Popen(["sleep", str(seconds)], start_new_session=own_session).pid

    def double_fork(self):
        """An orphan in a session of its own."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            orphan = os.fork()
            if orphan == 0:
                time.sleep(600)
                os._exit(0)
            os.write(writer, b"%d" % orphan)
            os._exit(0)
        os.waitpid(child, 0)
        return int(os.read(reader, 20))

    def hold_the_lock(self, seconds):
        """Sleeps with the interpreter's lock held: no thread of this process runs."""
        ctypes.PyDLL(None).sleep(int(seconds))

    def ignore_sigterm(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def flood(self, megabytes):
        chunk = b"\x80\xff partial line" * 4096
        for _ in range(megabytes * (1 << 20) // len(chunk)):
            os.write(1, chunk)
        print("the end of the flood")

    def say(self, text):
        print(text)

    def hurry(self, seconds):
        """Makes this worker trim its shared memory soon."""
        from orchestrator.worker import channel, segments

        segments.IDLE = channel.TICK = seconds

    def close_outputs(self):
        os.close(1)
        os.close(2)

    def close(self):
        print("closed", flush=True)


class Plain:
    """A class that knows nothing of this project."""

    def hello(self):
        return "hello"


class Broken:
    """Cannot be made."""

    def __init__(self):
        raise OSError("the checkpoint is not there")


def begin(path):
    """Says that a method runs now, where a path is given."""
    if path:
        open(path + ".begun", "w").close()


def twice(x):
    """A function, for families that are modules."""
    return 2 * x
