"""Listening sockets: what is opened, kept, inherited and said."""

from __future__ import annotations

import os
import socket

import pytest

from gwcore.config.schema import Listener
from gwcore.sockets import BindError, Listeners, bind
from tests.support import free_port


@pytest.fixture
def listeners():
    made: list[Listeners] = []

    def make(workers: int = 2) -> Listeners:
        made.append(Listeners(workers))
        return made[-1]

    yield make
    for x in made:
        x.close(list(x.sockets))


def test_one_socket_per_worker_with_what_connections_inherit(listeners):
    x, address = listeners(3), f"127.0.0.1:{free_port()}"
    assert x.open([address]) == [address]
    x.listen([Listener(address=address)])
    assert len({s.fileno() for s in x.sockets[address]}) == 3
    with socket.create_connection(("127.0.0.1", int(address.split(":")[1]))):
        pass
    for s in x.sockets[address]:
        assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) and s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60 and not s.getblocking() and not s.get_inheritable()


def test_what_is_there_is_kept(listeners):
    x, address = listeners(), f"127.0.0.1:{free_port()}"
    x.open([address])
    before = x.numbers()
    assert x.open([address]) == []
    assert x.numbers() == before


def test_nothing_queues_before_listen(listeners):
    x, port = listeners(), free_port()
    x.open([f"127.0.0.1:{port}"])
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", port)) != 0


def test_a_failure_leaves_everything_as_it_was(listeners):
    x, kept, fresh = listeners(), f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    x.open([kept])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BindError):
        x.open([kept, fresh, f"127.0.0.1:{taken.getsockname()[1]}"])
    assert list(x.sockets) == [kept]


def test_even_a_stranger_with_reuseport_is_noticed(listeners):
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(BindError, match="another process listens there"):
            listeners().open([f"127.0.0.1:{stranger.getsockname()[1]}"])


@pytest.mark.parametrize(
    "address, remedy",
    [
        ("192.0.2.1:8080", "no interface has this address"),
        ("no-such-host.invalid:80", "write an IP address"),
        ("unix:/no/such/directory/s", "make it"),
    ],
)
def test_errors_name_address_and_remedy(address, remedy):
    with pytest.raises(BindError, match=remedy) as why:
        bind(address)
    assert str(why.value).startswith(f"cannot listen on {address}: ")


def test_a_unix_socket_is_shared_by_all_and_removed_at_the_end(listeners, tmp_path):
    x, path = listeners(3), tmp_path / "s"
    x.open([f"unix:{path}"])
    x.listen([Listener(address=f"unix:{path}")])
    assert len({s.fileno() for s in x.sockets[f"unix:{path}"]}) == 1
    with pytest.raises(BindError, match="another process listens there"):
        bind(f"unix:{path}")
    x.close([f"unix:{path}"])
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindError, match="not a socket"):
        bind(f"unix:{path}")
    assert path.read_text() == "data"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_inheriting_keeps_sockets_and_fits_their_number(listeners, tmp_path, workers):
    old, address, gone, unix = listeners(2), f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", f"unix:{tmp_path}/s"
    old.open([address, gone, unix])
    numbers = {a: [os.dup(fd) if a != unix else fd for fd in fds] for a, fds in old.numbers().items()}
    shared = os.dup(numbers[unix][0])
    numbers[unix] = [shared, shared]
    new = listeners(workers)
    new.inherit(numbers, [address, unix])
    assert set(new.sockets) == {address, unix}
    assert new.open([address, unix]) == []
    assert [len(s) for s in new.sockets.values()] == [workers, workers]
    assert {s.fileno() for s in new.sockets[unix]} == {shared}
    for x in (old, new):
        x.sockets[unix][0].close()
        del x.sockets[unix]
