"""Who moves the bytes: one package a provider, loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.rdma.device import Device

PROVIDERS = ("shm", "verbs", "sim")


def open_device(provider: str, capacity: int, **options: Any) -> Device:
    """Open a device with `capacity` bytes of arena.

    Args:
        provider: `shm`, `verbs` or `sim`.
        capacity: bytes.
        options: what the provider's own `open_device` takes (adapter and port of `verbs`, the network of `sim`).

    Raises:
        ValueError: no such provider.
        ProviderUnavailable: it cannot be used here; the error says why.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"no provider {provider!r}; there are {', '.join(PROVIDERS)}")
    device: Device = import_module(f"engines.rdma.providers.{provider}").open_device(capacity, **options)
    return device
