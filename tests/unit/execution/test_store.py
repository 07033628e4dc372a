import errno
import os
import resource
import shutil
import sqlite3

import pytest
from fake.fixtures import execute_in
from fake.trials import make

from harness import index
from harness import store as storage
from harness.errors import StoreError
from harness.records import State
from harness.store import Store


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three records, made once."""
    folder = tmp_path_factory.mktemp("three")
    made = Store(folder / "runs")
    execute_in(made, *(make(folder, "noop", f"cell{i}", backend="emulated") for i in range(3)))
    return made.directory


@pytest.fixture
def filled(three, store):
    shutil.copytree(three, store.directory)
    return store


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A trial, and the directory that holds its record."""
    folder = tmp_path_factory.mktemp("one")
    trial, made = make(folder, "ok", "kept"), Store(folder / "runs")
    execute_in(made, trial)
    return trial, made.directory


@pytest.fixture
def kept(one, store):
    """A trial that the store holds a record of."""
    trial, directory = one
    shutil.copytree(directory, store.directory)
    return trial


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
def test_a_disk_that_refuses_gives_one_error_and_no_half_record(
    execute, make_trial, store, kept, monkeypatch, number, call
):
    refused = make_trial("ok", "refused")
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


def test_a_file_size_limit_gives_one_error_and_no_half_record(execute, make_trial, store, kept):
    refused = make_trial("ok", "refused")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            execute(refused)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(store.trial_directory(refused).glob(".record*"))
    assert cells(store) == ["kept"]


def test_a_directory_that_may_not_be_written_is_one_clear_error(make_trial, tmp_path):
    from harness.runner import run

    (tmp_path / "runs").write_text("a file where the directory should be")
    with pytest.raises(StoreError, match=r"runs is a file; expected a directory"):
        run([make_trial("ok")], store=Store(tmp_path / "runs"))


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
