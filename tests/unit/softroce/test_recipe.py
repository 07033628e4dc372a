import threading

import pytest

from emulation.softroce import Recipe, SoftRoceError, cache, recipe

KERNEL = "linux-image-6.12.9-amd64"


def archive(monkeypatch, versions, kernels):
    """A package archive with these candidates, and meta packages that stand for these kernels."""

    def call(command, **_):
        if command[1] == "depends":
            if command[2] not in kernels:
                raise SoftRoceError("no packages found")
            return f"{command[2]}\n  Depends: {kernels[command[2]]}\n"
        found = ""
        for name in command[2:]:
            found += f"{name}:\n  Installed: (none)\n  Candidate: {versions.get(name, '(none)')}\n  Version table:\n"
        return found

    monkeypatch.setattr(recipe, "call", call)
    monkeypatch.setattr(recipe, "need", lambda programs: None)


def key(monkeypatch, *, bump=None, kernels=None, **fields):
    versions = dict.fromkeys([*recipe.PACKAGES, KERNEL, "linux-image-6.1.1-amd64", "more"], "1.0")
    if bump:
        versions[bump] = "1.1"
    archive(monkeypatch, versions, kernels or {"linux-image-6.12-amd64": KERNEL})
    return Recipe(**fields).key


def test_the_key_is_that_of_all_that_an_image_holds(monkeypatch):
    same = key(monkeypatch)
    assert key(monkeypatch) == same
    others = [
        key(monkeypatch, bump="rdma-core"),
        key(monkeypatch, bump=KERNEL),
        key(monkeypatch, kernels={"linux-image-amd64": "linux-image-6.1.1-amd64"}),
        key(monkeypatch, packages=(*recipe.PACKAGES, "more")),
        key(monkeypatch, modules=(*recipe.MODULES, "siw")),
        key(monkeypatch, suite="trixie"),
    ]
    assert len({same, *others}) == 7


def test_the_newest_kernel_that_the_archive_has_is_taken(monkeypatch):
    archive(monkeypatch, {}, {"linux-image-amd64": "linux-image-6.1.1-amd64"})
    assert Recipe().kernel == "linux-image-6.1.1-amd64"
    archive(monkeypatch, {}, {"linux-image-amd64": "linux-image-6.1.1-amd64", "linux-image-6.12-amd64": KERNEL})
    assert Recipe().kernel == KERNEL


def test_package_lists_without_a_kernel_or_a_package_say_how_to_get_them(monkeypatch):
    archive(monkeypatch, {}, {})
    with pytest.raises(SoftRoceError, match="apt-get update"):
        _ = Recipe().kernel
    archive(monkeypatch, {}, {"linux-image-6.12-amd64": KERNEL})
    with pytest.raises(SoftRoceError, match="no Debian package busybox-static"):
        _ = Recipe().versions


def test_rxe_has_the_crc32_that_it_asks_for_by_name():
    assert {"crc32_generic", "rdma_rxe"} <= set(recipe.MODULES)


def test_a_folder_of_the_cache_is_filled_once_and_never_seen_half_filled(tmp_path):
    filled = []

    def fill():
        with cache.entry(tmp_path / "image") as folder:
            if folder is not None:
                assert not (tmp_path / "image").exists()
                (folder / "disk").write_text("whole")
                filled.append(folder)

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1
    assert (tmp_path / "image" / "disk").read_text() == "whole"


def test_a_folder_whose_filling_failed_is_filled_anew(tmp_path):
    def fail():
        with cache.entry(tmp_path / "image") as folder:
            (folder / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "image").exists()
    with cache.entry(tmp_path / "image") as folder:
        assert list(folder.iterdir()) == []


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "harness" / "softroce"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "harness" / "softroce"
