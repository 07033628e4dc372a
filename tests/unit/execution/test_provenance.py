import subprocess
import time

import pytest

from harness import provenance
from harness.backends import machine
from harness.backends.base import Capabilities, lacks
from harness.spec import Needs

SECRETS = [
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "HF_TOKEN",
    "DATABASE_URL",
    "MY_PASSWORD",
    "SSH_AUTH_SOCK",
    "API_KEY",
]


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_no_secret_leaves_by_the_environment(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("LD_PRELOAD", "https://user:hunter2@host/lib.so?api_key=hunter2")
    found = provenance.environment()
    assert "hunter2" not in str(found)
    assert found["OMP_NUM_THREADS"] == "2"


def test_the_names_allowed_do_not_look_like_secrets():
    words = ("SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "API_KEY", "AUTH")
    assert not [n for n in provenance.ALLOWED if any(w in n for w in words)]


def test_a_clean_checkout(repository):
    git(repository, "remote", "add", "origin", "https://user:hunter2@example.org/x.git")
    found = provenance.git(repository)
    assert len(found["commit"]) == 40
    assert (found["dirty"], found["branch"], found["origin"]) == (False, "main", "https://example.org/x.git")
    assert "diff" not in found


def test_a_change_is_told_by_its_hash(repository):
    digests = []
    for content in ("2", "3", "2"):
        (repository / "file").write_text(content)
        found = provenance.git(repository)
        assert found["dirty"]
        digests.append(found["diff"])
    assert digests[0] == digests[2] != digests[1]


def test_odd_repositories(tmp_path, repository, monkeypatch):
    git(repository, "checkout", "--detach")
    assert "branch" not in provenance.git(repository)
    empty = repository / "empty"
    empty.mkdir()
    git(empty, "init")
    assert provenance.git(empty) == {"dirty": False, "branch": "main"}
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git(tmp_path.parent) == {}
    monkeypatch.setenv("PATH", str(empty))
    assert provenance.git(repository) == {}


def test_the_machine_is_described_and_recognised_again():
    found = provenance.hardware()
    assert found["logical_cores"] >= 1
    assert found["memory"] >= found["limits"]["memory"] > 0
    assert provenance.machine_fingerprint() == provenance.machine_fingerprint() == found["fingerprint"]


def test_looking_around_is_quick():
    """Once a run; the bound is generous, the point is that nothing scans or waits."""
    begin = time.perf_counter()
    provenance.hardware()
    assert time.perf_counter() - begin < 2.0


VISIBLE = {
    "unset": (None, 2),
    "empty": ("", 0),
    "one": ("1", 1),
    "by name": ("GPU-b", 1),
    "wrong ends it": ("0,9,1", 1),
}


@pytest.mark.parametrize(("value", "count"), VISIBLE.values(), ids=list(VISIBLE))
def test_only_the_gpus_that_are_visible_count(monkeypatch, value, count):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = [{"uuid": "GPU-a", "memory": 1}, {"uuid": "GPU-b", "memory": 2}]
    assert len(machine._visible(found)) == count


def test_rdma_devices_are_what_the_kernel_lists(tmp_path):
    assert machine.rdma_devices(tmp_path / "none") == []
    (tmp_path / "mlx5_0").mkdir()
    assert machine.rdma_devices(tmp_path) == ["mlx5_0"]


def test_every_need_that_is_not_met_is_named(make_trial):
    needs = Needs(hosts=2, gpus=1, gpu_memory="80 GiB", memory="1 TiB", rdma=True)
    text = lacks(make_trial(needs=needs), Capabilities(memory=2**30))
    assert text == (
        "hosts: needs 2, has 1; GPUs per host: needs 1, has 0; GPU memory: needs 80 GiB, has 0 B; "
        "memory per host: needs 1 TiB, has 1 GiB; RDMA: needs an RDMA device, has none"
    )
    enough = Capabilities(hosts=2, gpus=8, gpu_memory=80 * 2**30, memory=2**40, rdma=True)
    assert lacks(make_trial(needs=needs), enough) == ""
