"""The control channel: whole messages, descriptors beside them, an end that is seen."""

from __future__ import annotations

import os
import socket

import pytest

from gwcore.control import FDS, QUEUE_BYTES, TEXT_BYTES, Channel


@pytest.fixture
def ends():
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    yield ours, other
    ours.close()
    other.close()


def test_a_message_arrives_whole_with_its_descriptors(ends):
    ours, other = ends
    fd = os.memfd_create("x")
    os.write(fd, b"plan")
    assert ours.send("prepare", [fd], version=7, why="ä")
    os.close(fd)
    message, fds = other.receive()
    assert message == {"op": "prepare", "version": 7, "why": "ä"}
    assert os.pread(fds[0], 10, 0) == b"plan" and not os.get_inheritable(fds[0])
    os.close(fds[0])


def test_messages_keep_their_order_and_borders(ends):
    ours, other = ends
    for i in range(100):
        assert ours.send("n", i=i)
    assert [other.receive()[0]["i"] for _ in range(100)] == list(range(100))
    with pytest.raises(BlockingIOError):
        other.receive()


def test_the_end_is_seen_after_what_was_sent(ends):
    ours, other = ends
    ours.send("last")
    ours.close()
    assert other.receive()[0] == {"op": "last"}
    assert other.receive() is None
    assert not other.send("late")


def test_a_reader_that_sleeps_blocks_nobody(ends):
    ours, other = ends
    sent = 0
    while ours.send("x", text="y" * TEXT_BYTES):
        sent += 1
        assert sent * TEXT_BYTES < 4 * QUEUE_BYTES
    assert other.receive()[0]["op"] == "x"


def test_a_long_text_is_cut_so_that_the_message_fits(ends):
    ours, other = ends
    assert ours.send("refused", why="é" * 1_000_000)
    assert other.receive()[0]["why"] == "é" * TEXT_BYTES


def test_pump_hands_over_all_and_closes_descriptors(ends):
    ours, other = ends
    fd = os.memfd_create("x")
    before = len(os.listdir("/proc/self/fd"))
    got = []
    for _ in range(3):
        ours.send("a", [fd] * FDS)
    other.pump(lambda m, fds: got.append((m["op"], len(fds))), lambda: got.append("end"))
    assert got == [("a", FDS)] * 3
    assert len(os.listdir("/proc/self/fd")) == before

    def fails(message, fds):
        raise ValueError

    ours.send("a", [fd])
    with pytest.raises(ValueError):
        other.pump(fails, lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    other.pump(fails, lambda: got.append("end"))
    assert got[-1] == "end"
    os.close(fd)


def test_pump_stops_when_the_handler_closes_the_channel(ends):
    ours, other = ends
    ours.send("a")
    ours.send("b")
    got = []

    def once(message, fds):
        got.append(message["op"])
        other.close()

    other.pump(once, lambda: got.append("end"))
    assert got == ["a"]


def test_a_pair_is_of_one_kind():
    ours, theirs = Channel.pair()
    assert theirs.type == socket.SOCK_SEQPACKET and not ours.sock.getblocking()
    ours.close()
    theirs.close()
