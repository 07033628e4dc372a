import errno
import os
import resource
import sqlite3
import subprocess

import pytest

from harness import index
from harness import store as storage
from harness.errors import StoreError
from harness.records import State


@pytest.fixture
def filled(execute, make_trial, store):
    trials = [make_trial("noop", f"cell{i}", backend="emulated") for i in range(3)]
    execute(*trials)
    return store


def cells(store):
    return [e.cell for e in store.list()]


def test_a_listing_shows_every_record(filled):
    assert cells(filled) == ["cell0", "cell1", "cell2"]
    assert {(e.spec, e.state, e.backend, e.hardware) for e in filled.list()} == {("trial", "ok", "emulated", "laptop")}


def test_a_listing_can_be_narrowed(filled):
    first = filled.list()[0]
    assert filled.list(key=first.key[:8]) == [first]
    assert filled.list(spec="other") == []
    assert filled.list(state="failed") == []
    assert filled.read(first).key == first.key


DAMAGE = {
    "deleted": lambda p: p.unlink(),
    "emptied": lambda p: p.write_bytes(b""),
    "overwritten": lambda p: p.write_bytes(b"not a database, and longer than a header " * 200),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:6000]),
    "another version": lambda p: _execute(p, "PRAGMA user_version = 99"),
    "another table": lambda p: _execute(p, "DROP TABLE records"),
}


def _execute(path, statement):
    table = sqlite3.connect(path)
    table.execute(statement)
    table.commit()
    table.close()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_index_mends_itself(filled, damage):
    damage(filled.directory / index.FILE)
    assert cells(filled) == ["cell0", "cell1", "cell2"]
    assert filled.reindex() == 3


def test_the_index_follows_the_files(filled):
    first, second, third = filled.list()
    (filled.directory / first.path / index.RECORD).unlink()
    (filled.directory / second.path / index.RECORD).write_text("{}")
    changed = filled.read(third).model_copy(update={"state": State.FAILED})
    storage.write_atomically(filled.directory / third.path / index.RECORD, changed.model_dump_json().encode())
    assert [(e.cell, e.state) for e in filled.list()] == [("", "unreadable"), ("cell2", "failed")]
    assert [r.state for r in filled.records()] == [State.FAILED]


def test_a_damaged_record_is_run_again(execute, make_trial, store):
    trial = make_trial("ok")
    execute(trial)
    (store.trial_directory(trial) / index.RECORD).write_text('{"half": ')
    ran = execute(trial)
    assert (ran.executed, ran.records[0].state) == (1, State.OK)


def test_a_file_that_is_no_record_is_one_clear_error(tmp_path):
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(StoreError, match=r"record\.json is not a record: key: Field required; delete it"):
        storage.read(tmp_path / "record.json")


FULL = {"full": errno.ENOSPC, "too big": errno.EFBIG, "read-only": errno.EROFS, "failing": errno.EIO}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", FULL.values(), ids=list(FULL))
def test_a_disk_that_refuses_gives_one_error_and_no_half_record(execute, make_trial, store, monkeypatch, number, call):
    kept, refused = make_trial("ok", "kept"), make_trial("ok", "refused")
    execute(kept)
    before = (store.trial_directory(kept) / index.RECORD).read_bytes()

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(StoreError, match=f"cannot write .*{os.strerror(number)}; earlier records are intact"):
            execute(refused)
    place = store.trial_directory(refused)
    assert [p.name for p in place.rglob("*") if p.is_file()] == [".lock"]
    assert (store.trial_directory(kept) / index.RECORD).read_bytes() == before
    assert cells(store) == ["kept"]
    assert execute(kept, refused).executed == 1


def test_a_file_size_limit_gives_one_error_and_no_half_record(execute, make_trial, store):
    kept, refused = make_trial("ok", "kept"), make_trial("ok", "refused")
    execute(kept)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            execute(refused)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(store.trial_directory(refused).glob(".record*"))
    assert cells(store) == ["kept"]


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


def test_a_directory_that_may_not_be_written_is_one_clear_error(make_trial, tmp_path):
    from harness.runner import run

    (tmp_path / "runs").write_text("a file where the directory should be")
    with pytest.raises(StoreError, match=r"runs is a file; expected a directory"):
        run([make_trial("ok")], store=storage.Store(tmp_path / "runs"))


@pytest.mark.root
def test_a_read_only_directory_can_be_listed_and_is_one_clear_error_to_write(execute, make_trial, filled):
    if os.geteuid() != 0:
        pytest.skip("mounting read-only needs root")
    place = str(filled.directory)
    if subprocess.run(["mount", "--bind", place, place], capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        with pytest.raises(StoreError, match="Read-only file system"):
            execute(make_trial("ok"))
        assert cells(filled) == ["cell0", "cell1", "cell2"]
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_ten_thousand_records_are_listed_from_the_index(filled, monkeypatch):
    """The files are not read again: what would take seconds is a matter of one stat each."""
    record = filled.records()[0]
    content = record.model_dump_json().encode()
    for number in range(2000):
        place = filled.directory / "many" / f"cell-{number}"
        place.mkdir(parents=True)
        (place / index.RECORD).write_bytes(content)
    assert len(filled.list()) == 2003
    read = []
    monkeypatch.setattr(index, "_entry", lambda *a: read.append(a))
    assert len(filled.list()) == 2003
    assert read == []
