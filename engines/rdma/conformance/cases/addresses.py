"""Descriptors and addresses come from other processes, and are checked like any input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from engines.rdma.conformance.case import case
from engines.rdma.conformance.expectations import Failure, equal, expect, refused
from engines.rdma.device import ChannelState, Descriptor, InvalidDescriptor, ProviderUnavailable, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.rdma.conformance.pair import Pair

NONSENSE: tuple[Any, ...] = (None, True, [], {}, 1.5, float("inf"), -1, 2**64, 10**400, "", "text")
TEXTS = ("", "\x00", "\ud800", "x" * 70_000, "../..", "0" * 32)


def _spoilt(good: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what is wrong, text) for many ways to spoil a JSON object."""
    for text in ("", "{", "null", "7", '"text"', "[]", "{}", "[" * 100_000, '{"a": 1}', "\x00", "nan"):
        yield f"the text {text[:20]!r}", text
    yield "a field more", json.dumps({**good, "more": 1})
    for name, value in good.items():
        yield f"no {name!r}", json.dumps({key: item for key, item in good.items() if key != name})
        for wrong in NONSENSE:
            if type(wrong) is not type(value) or wrong in (-1, 2**64, 10**400):
                yield f"{name!r} as {str(wrong)[:20]!r}", json.dumps({**good, name: wrong})


@case()
def a_descriptor_that_no_device_would_publish_is_refused(pair: Pair) -> None:
    """Wrong types, signs, sizes, fields; nothing but one typed error comes of it."""
    good = json.loads(pair.far.published(64)[1].to_json())
    for what, text in _spoilt(good):
        refused(InvalidDescriptor, lambda text=text: Descriptor.from_json(text), f"a descriptor with {what}")


@case()
def an_address_that_no_channel_would_publish_is_refused(pair: Pair) -> None:
    """And leaves the channel as it was, to be connected with the right one."""
    pair.near.channel.reset()
    pair.far.channel.reset()
    good = json.loads(pair.far.channel.address())
    expect(isinstance(good, dict), "an address must be a JSON object")
    for what, text in _spoilt(good):
        refused(
            (InvalidDescriptor, ProviderUnavailable),
            lambda text=text: pair.near.channel.connect(text),
            f"an address with {what}",
        )
        equal(pair.near.channel.state, ChannelState.UNCONNECTED, f"the state after an address with {what}")
    for name, value in good.items():
        for wrong in TEXTS if isinstance(value, str) else (0, 1, 2**31, 2**63, 2**64 - 1):
            _refused_or_harmless(pair, json.dumps({**good, name: wrong}), f"{name!r} as {str(wrong)[:20]!r}")
    pair.connect()
    pair.near.channel.send(b"note")
    equal(pair.message(), b"note", "the message after all refusals")


def _refused_or_harmless(pair: Pair, text: str, what: str) -> None:
    """Not every wrong value can be known to be wrong; it must not end in an untyped error all the same."""
    try:
        pair.near.channel.connect(text)
    except (InvalidDescriptor, ProviderUnavailable):
        equal(pair.near.channel.state, ChannelState.UNCONNECTED, f"the state after an address with {what}")
    except Exception as error:
        raise Failure(f"an address with {what} ended in {type(error).__name__}: {error}") from error
    else:
        pair.near.channel.reset()


@case()
def a_channel_is_connected_once(pair: Pair) -> None:
    """A second connect is the caller's mistake, and harms nothing."""
    refused(ValueError, lambda: pair.near.channel.connect(pair.far.channel.address()), "connecting twice")
    ticket = pair.near.channel.send(b"note")
    equal((pair.message(), pair.status_of(ticket)), (b"note", Status.SUCCESS), "a message after that")
