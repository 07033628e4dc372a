"""The allocator that knows which operation is running: builds `allocator_hook.cpp` once, and speaks to it.

The library is compiled with the C++ compiler of the machine (`$CXX`, else `c++` or `g++`) against the headers that
PyTorch's wheel carries, which takes a second or two, and is kept in the user's cache folder under a name that changes
with the source, the version of PyTorch and the compiler. It is installed when the first trace is made and stays: a
thread that has entered no trace pays one look at a thread-local pointer for each allocation.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

SOURCE = Path(__file__).with_suffix(".cpp")


class HookUnavailable(HarnessError):
    """The allocator hook cannot be built or installed here, for the reason given."""


@dataclass(frozen=True)
class Origin:
    """Which allocation made a buffer."""

    operation: int
    """The number that was announced when it was made."""
    ordinal: int
    """How many allocations of that operation came before."""
    nbytes: int


class _Site(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_uint64), ("ordinal", ctypes.c_uint64), ("nbytes", ctypes.c_uint64))


def compiler() -> str | None:
    """The C++ compiler that would be used, or None."""
    names = filter(None, (os.environ.get("CXX"), "c++", "g++"))
    return next(filter(None, map(shutil.which, names)), None)


def cache_folder() -> Path:
    """Where built libraries are kept: `$XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness" / "rdma"


def build(folder: Path | None = None) -> Path:
    """The shared library, compiled if `folder` does not hold it yet.

    Raises:
        HookUnavailable: no compiler, or it failed, with the end of what it said.
    """
    import torch

    command = compiler()
    if command is None:
        raise HookUnavailable("no C++ compiler: install g++, or name one in CXX")
    home = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    key = hashlib.sha256("\0".join([SOURCE.read_text(), torch.__version__, command, *flags]).encode()).hexdigest()[:16]
    folder = folder or cache_folder()
    library = folder / f"allocator-hook-{key}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # Built aside and renamed: several ranks may build at once, and none may load half a file.
        built = Path(scratch) / library.name
        paths = [f"-I{home / 'include'}", str(SOURCE), "-o", str(built), f"-L{home / 'lib'}", "-lc10"]
        done = subprocess.run([command, *flags, *paths], capture_output=True, text=True, check=False)
        if done.returncode:
            raise HookUnavailable(f"{command} could not compile {SOURCE.name}: {done.stderr.strip()[-500:]}")
        built.replace(library)
    return library


@functools.cache
def load() -> ctypes.PyDLL:
    """The library, loaded and installed in this process.

    Raises:
        HookUnavailable: it cannot be built, or another allocator holds the place.
    """
    # PyDLL keeps the interpreter's lock: the calls take less time than giving it up and taking it back.
    library = ctypes.PyDLL(str(build()))
    pointer, word = ctypes.c_void_p, ctypes.c_uint64
    for name, result, arguments in (
        ("hook_install", ctypes.c_int, ()),
        ("hook_balance", ctypes.c_int64, ()),
        ("trace_new", pointer, ()),
        ("trace_delete", None, (pointer,)),
        ("trace_enter", pointer, (pointer,)),
        ("trace_operation", None, (pointer, word)),
        ("trace_bind", None, (pointer, word, word, pointer, word)),
        ("trace_unbind_all", None, (pointer,)),
        ("trace_origin", ctypes.c_int, (pointer, pointer, ctypes.POINTER(_Site))),
        ("buffer_is_lent", ctypes.c_int, (pointer,)),
        ("trace_allocations", word, (pointer,)),
        ("trace_served", word, (pointer,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if not library.hook_install():
        raise HookUnavailable("another allocator of CPU memory is installed, and does not give way")
    return library


def balance() -> int:
    """Buffers handed out since the hook was installed and not yet given back."""
    return load().hook_balance()


class Trace:
    """Numbers the allocations of one thread's operations, and answers some of them from registered memory."""

    def __init__(self) -> None:
        self._library = load()
        self._handle: int = self._library.trace_new()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.trace_delete(self._handle)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """In charge of this thread's allocations; an enclosing trace is back in charge afterwards, whatever happens."""
        before = self._library.trace_enter(self._handle)
        try:
            yield
        finally:
            self._library.trace_enter(before)

    def operation(self, number: int) -> None:
        """Announce what runs next."""
        self._library.trace_operation(self._handle, number)

    def run(self, number: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Announce an operation and run it."""
        self.operation(number)
        return function(*args, **kwargs)

    def bind(self, origin: Origin, slot: torch.Tensor) -> None:
        """Let the allocation `origin` be answered with the memory of `slot` from now on; the caller keeps it alive.

        Raises:
            ValueError: the slot is smaller than the allocation.
        """
        if slot.nbytes < origin.nbytes:
            raise ValueError(f"a slot of {slot.nbytes} bytes for an allocation of {origin.nbytes}")
        self._library.trace_bind(self._handle, origin.operation, origin.ordinal, slot.data_ptr(), origin.nbytes)

    def is_lent(self, address: int) -> bool:
        """Whether a tensor holds the bound buffer at `address`."""
        return bool(self._library.buffer_is_lent(address))

    def unbind_all(self) -> None:
        """Let every allocation be answered with ordinary memory."""
        self._library.trace_unbind_all(self._handle)

    def origin(self, address: int) -> Origin | None:
        """Which allocation of this trace made the live buffer at `address`."""
        site = _Site()
        if not self._library.trace_origin(self._handle, address, ctypes.byref(site)):
            return None
        return Origin(site.operation, site.ordinal, site.nbytes)

    @property
    def allocations(self) -> int:
        """How many were made under this trace."""
        return self._library.trace_allocations(self._handle)

    @property
    def served(self) -> int:
        """How many of them were answered from registered memory."""
        return self._library.trace_served(self._handle)
