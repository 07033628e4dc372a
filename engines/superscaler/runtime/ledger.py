"""How many bytes are alive on a rank: each storage once, however many values share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from torch import Tensor


class Ledger:
    """Who holds which storages."""

    def __init__(self) -> None:
        self.live = 0
        """Bytes."""
        self._held: dict[Hashable, set[int]] = {}
        self._uses: dict[int, list[int]] = {}
        """Address -> [holders, bytes]."""

    def hold(self, holder: Hashable, tensors: Iterable[Tensor]) -> None:
        """A holder has these tensors now, and none that it had before."""
        storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
        before = self._held.get(holder, set())
        self._held[holder] = set(storages)
        for address, nbytes in storages.items():
            uses = self._uses.setdefault(address, [0, nbytes])
            if not uses[0]:
                self.live += nbytes
            uses[0] += 1
        self._drop(before)

    def release(self, holder: Hashable) -> None:
        """A holder has nothing any more."""
        self._drop(self._held.pop(holder, set()))

    def clear(self) -> None:
        """Nobody has anything."""
        self._held.clear()
        self._uses.clear()
        self.live = 0

    def _drop(self, addresses: Iterable[int]) -> None:
        for address in addresses:
            uses = self._uses[address]
            uses[0] -= 1
            if not uses[0]:
                self.live -= uses[1]
                del self._uses[address]
