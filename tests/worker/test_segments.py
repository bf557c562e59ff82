"""Shared memory: leases, caps, and what a peer can do with it."""

from __future__ import annotations

import array
import errno
import fcntl
import gc
import mmap
import os
import socket
import struct
import threading

import numpy as np
import pytest
from conditions import LONG

from orchestrator.worker import messages as m
from orchestrator.worker import nameless, segments
from orchestrator.worker.segments import SegmentPool, SegmentViews
from orchestrator.worker.wire import DecodingError

BIG = np.arange(100_000, dtype=np.int32)


@pytest.fixture
def ends():
    ours, theirs = segments.pair()
    made = [SegmentPool(ours), SegmentViews(theirs)]
    yield made
    for end in made:
        end.close()


@pytest.fixture
def posts():
    ours, theirs = segments.pair()
    made = [m.Post(SegmentPool(s.dup()), SegmentViews(s)) for s in (ours, theirs)]
    yield made
    for post in made:
        post.pool.close()
        post.views.close()


def send(sender, receiver, value):
    return receiver.parse(sender.compose(m.CALL, 1, value)).value()


def give_back(receiver, sender):
    sender.parse(receiver.signal(m.RELEASE))


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_lease_ends_with_the_last_view_and_not_before(posts):
    sender, receiver = posts
    got = send(sender, receiver, {"a": BIG, "b": [BIG, BIG]})
    assert receiver.views.held == 1
    keep = memoryview(got["b"][1][10:20].reshape(2, 5).T)
    del got
    gc.collect()
    assert receiver.views.held == 1
    copy = np.asarray(keep)
    keep.release()
    assert copy.tolist() == np.arange(10, 20).reshape(2, 5).T.tolist()
    assert not receiver.owes()
    del copy, keep
    assert receiver.views.held == 0
    assert receiver.owes()
    assert sender.pool.lent == 1
    give_back(receiver, sender)
    assert sender.pool.lent == 0
    assert not receiver.owes()


def test_a_message_that_is_thrown_away_undecoded_gives_its_lease_back(posts):
    sender, receiver = posts
    message = receiver.parse(sender.compose(m.RESULT, 1, BIG))
    assert receiver.views.held == 1
    del message
    assert receiver.views.held == 0


def test_segments_are_used_again(posts):
    sender, receiver = posts
    send(sender, receiver, BIG)
    give_back(receiver, sender)
    before = descriptors(), sender.pool.bytes
    for k in range(20):
        got = send(sender, receiver, BIG + k)
        assert got[3] == 3 + k
        del got
        give_back(receiver, sender)
    assert descriptors() <= before[0]
    assert sender.pool.bytes == before[1]


def test_views_are_writable_and_do_not_change_the_senders_array(posts):
    sender, receiver = posts
    value = BIG.copy()
    got = send(sender, receiver, value)
    got[:] = -1
    assert np.array_equal(value, BIG)


def test_a_view_outlives_both_ends(posts):
    sender, receiver = posts
    got = send(sender, receiver, BIG)
    for post in posts:
        post.pool.close()
        post.views.close()
    gc.collect()
    assert np.array_equal(got, BIG)
    got[0] = 7
    del got


def test_with_all_segments_lent_messages_travel_in_frames(posts):
    sender, receiver = posts
    held = [send(sender, receiver, BIG + k) for k in range(segments.SEGMENTS + 5)]
    assert sender.pool.lent == segments.SEGMENTS
    assert all(value[0] == k for k, value in enumerate(held))
    del held
    give_back(receiver, sender)
    assert sender.pool.lent == 0


def test_a_pool_has_a_limit(ends):
    ours, theirs = segments.pair()
    pool = SegmentPool(ours, limit=1 << 20)
    assert pool.lend(1 << 19) is not None
    assert pool.lend(1 << 20) is None
    assert pool.bytes == 1 << 19
    pool.close()
    theirs.close()


def test_free_segments_make_room_for_another_class(ends):
    ours, theirs = segments.pair()
    pool = SegmentPool(ours, limit=1 << 20)
    small = pool.lend(1 << 19)
    pool.take_back([(small.ident, small.serial)])
    assert pool.lend(1 << 20) is not None
    assert pool.take_dropped() == [small.ident]
    pool.close()
    theirs.close()


def test_a_pool_keeps_so_much_free_and_drops_the_least_recently_used():
    ours, theirs = segments.pair()
    pool = SegmentPool(ours, keep=1 << 20)
    lent = [pool.lend(1 << 19) for _ in range(4)]
    for segment in lent:
        pool.take_back([(segment.ident, segment.serial)])
    assert pool.bytes == 1 << 20
    assert pool.take_dropped() == [lent[0].ident, lent[1].ident]
    pool.close()
    theirs.close()


def test_idle_segments_go(posts, monkeypatch):
    sender, receiver = posts
    send(sender, receiver, BIG)
    give_back(receiver, sender)
    sender.pool.trim()
    assert sender.pool.bytes
    before = descriptors()
    monkeypatch.setattr(segments, "IDLE", -1.0)
    sender.pool.trim()
    assert sender.pool.bytes == 0
    assert sender.owes()
    receiver.parse(sender.signal(m.RELEASE))
    assert descriptors() < before - 1  # on both sides


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EINTR])
def test_without_memory_messages_travel_in_frames(posts, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    sender, receiver = posts
    before = descriptors()
    monkeypatch.setattr(os, "posix_fallocate", full)
    frames = sender.compose(m.CALL, 1, BIG)
    assert len(frames) == 2
    assert np.array_equal(receiver.parse([memoryview(f).cast("B") for f in frames]).value(), BIG)
    assert sender.pool.bytes == 0
    assert descriptors() <= before


def test_without_descriptors_messages_travel_in_frames(posts, monkeypatch):
    def none(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "memfd_create", none)
    assert len(posts[0].compose(m.CALL, 1, BIG)) == 2


def test_without_anybody_at_the_other_end(ends):
    ours, theirs = segments.pair()
    theirs.close()
    pool = SegmentPool(ours)
    assert pool.lend(1 << 20) is None
    pool.close()


def test_size_classes_waste_little():
    for nbytes in (1, 1 << 17, (1 << 17) + 1, 1 << 26, (1 << 26) + 1, 5 * 10**9, 2**31):
        capacity = segments._capacity(nbytes)
        assert nbytes <= capacity
        assert capacity % 4096 == 0
        assert capacity <= max(128 << 10, 2 * nbytes if nbytes <= 64 << 20 else 1.13 * nbytes)


def test_returning_what_was_not_lent_changes_nothing(ends):
    pool, _ = ends
    segment = pool.lend(1 << 20)
    pool.take_back([(segment.ident, segment.serial + 1), (99, 1), (-1, -1)])
    assert pool.lent == 1
    pool.take_back([(segment.ident, segment.serial)] * 2)
    assert pool.lent == 0
    assert pool.lend(1 << 20) is segment
    assert pool.lend(1 << 20) is not segment


# -- a peer that lies ------------------------------------------------------------------------------------------------------


def introduce(peer, ident, capacity, size=None, seals=7, fds=1):
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, capacity if size is None else size)
    fcntl.fcntl(fd, 1033, seals)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * fds))] if fds else []
    peer.sendmsg([struct.pack("<QQ", ident, capacity)], rights)
    os.close(fd)


@pytest.mark.parametrize(
    "lie",
    [{"size": 4096}, {"seals": 0}, {"seals": 4}, {"fds": 0}, {"fds": 2}],
    ids=["shorter than it says", "not sealed", "can still shrink", "no descriptor", "two descriptors"],
)
def test_an_introduction_that_lies_is_refused(lie):
    ours, theirs = segments.pair()
    views = SegmentViews(theirs)
    before = descriptors()
    introduce(ours, 1, 1 << 20, **lie)
    with pytest.raises(DecodingError):
        views.lease(1, 1, 100)
    assert descriptors() <= before
    views.close()
    ours.close()


def test_a_segment_that_was_never_introduced():
    ours, theirs = segments.pair()
    views = SegmentViews(theirs)
    with pytest.raises(DecodingError, match="never introduced"):
        views.lease(1, 1, 100)
    views.close()
    ours.close()


@pytest.mark.parametrize("place", [(1, 1, (1 << 20) + 1), (1, 1, 0), (1, 1, -5), (1, 0, 5), (1, -1, 5)])
def test_a_place_outside_of_its_segment(place):
    ours, theirs = segments.pair()
    views = SegmentViews(theirs)
    introduce(ours, 1, 1 << 20)
    with pytest.raises(DecodingError):
        views.lease(*place)
    views.close()
    ours.close()


def test_a_sealed_segment_cannot_be_cut_under_a_reader(ends):
    pool, views = ends
    segment = pool.lend(1 << 20)
    view = views.lease(segment.ident, segment.serial, 1 << 20)
    for entry in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{entry}"
        try:
            if "memfd:orchestrator" in os.readlink(path):
                with pytest.raises(OSError, match="not permitted"):
                    os.ftruncate(int(entry), 0)
        except FileNotFoundError:
            continue
    assert view[-1] == 0


@pytest.fixture
def switches(tmp_path, monkeypatch):
    """The kernel's switches for huge pages, as this test wants them."""
    monkeypatch.setattr(nameless, "HUGE_PAGES", str(tmp_path))
    nameless.huge_pages.cache_clear()
    (tmp_path / "hugepages-2048kB").mkdir()
    yield tmp_path
    nameless.huge_pages.cache_clear()


@pytest.mark.parametrize(
    ("size", "system", "found"),
    [
        ("always [inherit] never", "always advise [never]", "never"),
        ("always [inherit] never", "always [advise] never", "advise"),
        ("always inherit [never]", "always [advise] never", "never"),
        ("[always] inherit never", "always advise [never]", "always"),
        (None, "always [advise] never", "advise"),
        (None, None, ""),
        (None, "", ""),
    ],
)
def test_whether_shared_memory_gets_huge_pages(switches, size, system, found):
    for text, name in ((size, "hugepages-2048kB/shmem_enabled"), (system, "shmem_enabled")):
        if text is not None:
            (switches / name).write_text(text)
    assert nameless.huge_pages() == found


@pytest.mark.parametrize("has_them", [True, False])
def test_huge_pages_are_asked_for_where_that_is_heard(switches, monkeypatch, has_them):
    asked = []

    class Memory(mmap.mmap):
        def madvise(self, option, *place):
            asked.append(option)
            if not has_them:
                raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(nameless.mmap, "mmap", Memory)
    (switches / "shmem_enabled").write_text("always [advise] never")
    for capacity in (1 << 20, 4 << 20):
        fd = nameless.sealed(capacity)
        assert os.fstat(fd).st_blocks * 512 == capacity  # whatever became of the huge ones
        assert nameless.is_sealed(fd)
        os.close(fd)
    assert asked == [mmap.MADV_HUGEPAGE, nameless._POPULATE_WRITE][: 1 + has_them]


def test_garbage_collection_inside_the_pools_lock_does_not_deadlock(ends):
    """A lease can end at any moment, also while this very thread holds the pool's lock."""
    pool, views = ends
    segment = pool.lend(1 << 20)
    cycle = [views.lease(segment.ident, segment.serial, 1 << 20)]
    cycle.append(cycle)
    del cycle
    with pool._lock:
        gc.collect()
    assert views.take_returned() == [(segment.ident, segment.serial)]


def test_mappings_are_shared(ends):
    pool, views = ends
    segment = pool.lend(1 << 20)
    segment.base[:4] = [1, 2, 3, 4]
    assert views.lease(segment.ident, segment.serial, 4).tolist() == [1, 2, 3, 4]
    assert mmap.PAGESIZE


def test_a_message_can_be_sent_wherever_garbage_is_collected(posts):
    """A stream that is garbage cancels its method; a collection may begin while the pool is looked through."""
    sender, _ = posts
    sender.pool._dropped.append(1)

    def collect():
        with sender.pool._lock:
            sender.signal(m.CANCEL, 1)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()
