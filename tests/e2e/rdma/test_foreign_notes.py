"""What another rank says over the session is checked like any input."""

from __future__ import annotations

import json
import socket
import threading
from types import SimpleNamespace

import pytest

from engines.rdma.device import Descriptor, InvalidDescriptor
from engines.rdma.placement import PeerLost, ProtocolError
from engines.rdma.production import Producer
from engines.rdma.session import LENGTH, Session
from engines.rdma.tensors import Payload, Tensor
from engines.rdma.transports import Setting, capacity, open_receiver, open_sender
from harness.api import BackendError, EnvironmentLacks
from harness.execution.rendezvous import FileRendezvous

PAYLOAD = Payload("p", (Tensor("w", (100,), "float32"),))
SETTING = Setting((PAYLOAD,))


@pytest.fixture
def sessions(tmp_path):
    """Both ranks' sessions, in this process."""

    def context(rank):
        return SimpleNamespace(rank=rank, rendezvous=FileRendezvous(tmp_path / "board"), address="127.0.0.1")

    made = [None, None]
    other = threading.Thread(target=lambda: made.__setitem__(1, Session(context(1), 5.0)))
    other.start()
    made[0] = Session(context(0), 5.0)
    other.join()
    yield made
    for session in made:
        session.__exit__(None, None, None)


def both(*actions):
    """Do something on each rank at once; the exceptions, or None."""
    errors = [None] * len(actions)

    def do(index, action):
        try:
            action()
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=do, args=item) for item in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_a_note_that_is_not_json_is_refused(sessions):
    sessions[1].control.sendall(LENGTH.pack(3) + b"\xff{]")
    with pytest.raises(BackendError, match=r"not JSON \(a report\)"):
        sessions[0].hear("a report")


def test_a_note_longer_than_any_of_ours_is_refused_before_it_is_read(sessions):
    sessions[1].control.sendall(LENGTH.pack(2**31))
    with pytest.raises(BackendError, match="2147483648 bytes is not one of ours"):
        sessions[0].hear("a report")


def test_half_a_note_ends_with_the_rank_that_sent_it(sessions):
    sessions[1].control.sendall(LENGTH.pack(100) + b"{")
    sessions[1].control.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLost, match=r"rank 1 ended \(a report\)"):
        sessions[0].hear("a report")


def test_both_ranks_learn_that_one_has_no_device(sessions, monkeypatch):
    from engines.rdma import providers
    from engines.rdma.device import ProviderUnavailable, Unavailable

    opened = providers.open_device

    def open_device(provider, capacity):
        if capacity == 1:
            raise ProviderUnavailable(Unavailable.DEVICE, "there is none")
        return opened(provider, capacity)

    monkeypatch.setattr(providers, "open_device", open_device)
    errors = both(lambda: sessions[0].open_device("auto", 4096), lambda: sessions[1].open_device("auto", 1))
    expected = "provider 'shm' cannot be used: rank 1: no device: there is none"
    assert [(type(error), str(error)) for error in errors] == [(EnvironmentLacks, expected)] * 2


@pytest.mark.parametrize(
    ("wanted", "same_host", "chosen"), [("auto", True, "shm"), ("auto", False, "verbs"), ("verbs", True, "verbs")]
)
def test_the_provider_follows_from_the_hosts(sessions, wanted, same_host, chosen):
    sessions[0].same_host = same_host
    assert sessions[0]._choose(wanted) == chosen


def test_shared_memory_between_hosts_is_refused(sessions):
    sessions[0].same_host = False
    with pytest.raises(EnvironmentLacks, match="'shm' needs both ranks on one host"):
        sessions[0]._choose("shm")


def test_virtual_time_is_not_measured(sessions):
    with pytest.raises(EnvironmentLacks, match="'sim' moves bytes in virtual time, which is a prediction"):
        sessions[0]._choose("sim")


def joined(sessions, name="zero-copy"):
    """A sender and a receiver of a transport, connected."""
    devices = [None, None]
    ends = [None, None]

    def open_end(rank, open_it):
        def act():
            nbytes = capacity([name], SETTING, rank=rank)
            devices[rank] = sessions[rank].open_device("shm", nbytes)
            ends[rank] = open_it(name, sessions[rank], SETTING, devices[rank])

        return act

    errors = both(open_end(0, open_sender), open_end(1, open_receiver))
    assert errors == [None, None]
    return devices, ends


FOREIGN = Descriptor("another device", 0, 1, 4096, 2**20, 7, 7).to_json()


@pytest.mark.parametrize(
    ("offer", "kind"),
    [
        (5, ProtocolError),
        (None, ProtocolError),
        ("{}", InvalidDescriptor),
        (json.dumps({"layout": "x", "slots": FOREIGN}), ProtocolError),
        (json.dumps({"layout": "x", "slots": FOREIGN.replace("4096", "-4096")}), InvalidDescriptor),
        (json.dumps({"layout": "x", "slots": FOREIGN.replace("4096", '"4096"')}), InvalidDescriptor),
    ],
)
def test_an_offer_that_no_rank_of_ours_makes_is_refused(sessions, offer, kind):
    devices, ends = joined(sessions)
    sources = Producer(devices[0], SETTING).sources(PAYLOAD)
    errors = both(
        lambda: ends[0].prepare(PAYLOAD, sources),
        lambda: sessions[1].swap(offer, "the sender's offer"),
    )
    assert isinstance(errors[0], kind), errors
    for end in ends:
        end.close()


def test_a_foreign_region_is_never_written(sessions):
    """An offer with the right layout whose descriptor names a region that the peer never published."""
    devices, ends = joined(sessions)
    sources = Producer(devices[0], SETTING).sources(PAYLOAD)

    def offer_another():
        own = json.loads(ends[1]._end.offer(PAYLOAD))
        slots = json.loads(own["slots"]) | {"rkey": json.loads(own["slots"])["rkey"] ^ 1}
        ends[1]._end.accept(sessions[1].swap(json.dumps(own | {"slots": json.dumps(slots)}), "the sender's offer"))

    assert both(lambda: ends[0].prepare(PAYLOAD, sources), offer_another) == [None, None]
    sources[0][:] = 1
    errors = both(lambda: ends[0].send(1))
    assert "remote access error" in str(errors[0])
    assert not ends[1].received(0).any()
    for end in ends:
        end.close()


def test_a_descriptor_from_before_a_reset_is_refused(sessions):
    devices, ends = joined(sessions)
    sources = Producer(devices[0], SETTING).sources(PAYLOAD)
    assert both(lambda: ends[0].prepare(PAYLOAD, sources), lambda: ends[1].prepare(PAYLOAD)) == [None, None]
    devices[1].reset()
    errors = both(lambda: ends[0].send(1))
    assert "stale region" in str(errors[0])
    for end in ends:
        end.close()
