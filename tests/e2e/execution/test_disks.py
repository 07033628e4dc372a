"""Disks that are full or may not be written, not ones that only say so."""

import os
import subprocess

import pytest

from harness.errors import StoreError
from harness.records import State


@pytest.mark.root
def test_a_full_disk_gives_one_error_and_the_run_goes_on_once_there_is_room(execute, make_trial, store):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    store.directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "harness-test", str(store.directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        trials = [make_trial("ok", f"cell{i}", backend="emulated") for i in range(40)]
        with pytest.raises(StoreError, match="No space left on device"):
            execute(*trials)
        kept = store.list()
        assert 0 < len(kept) < len(trials)
        assert all(e.state == "ok" for e in kept)
        assert not list(store.directory.rglob(".record-*"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(store.directory)], check=True)
        assert [r.state for r in execute(*trials).records] == [State.OK] * 40
    finally:
        subprocess.run(["umount", "-l", str(store.directory)], check=True)


@pytest.mark.root
def test_a_read_only_directory_can_be_listed_and_is_one_clear_error_to_write(execute, make_trial, store):
    if os.geteuid() != 0:
        pytest.skip("mounting read-only needs root")
    execute(make_trial("ok", "kept"))
    place = str(store.directory)
    if subprocess.run(["mount", "--bind", place, place], capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        with pytest.raises(StoreError, match="Read-only file system"):
            execute(make_trial("ok"))
        assert [entry.cell for entry in store.list()] == ["kept"]
    finally:
        subprocess.run(["umount", "-l", place], check=True)
