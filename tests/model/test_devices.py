"""Device and threads are chosen from what is there. Nothing here runs on CUDA or MPS."""

import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cvt_cli.base import machine as this_machine
from cvt_cli.base.errors import UsageError
from cvt_cli.model.devices import choose_device, choose_precision, exactly, require_one_each
from tests_shared import torchrun_environment


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def have(cuda: int = 0, mps: bool = False, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"), [(1, False, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_the_cpu(machine, cuda, mps, wanted: str) -> None:
    machine(cuda=cuda, mps=mps)

    assert choose_device("auto").type == wanted


def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine) -> None:
    machine(mps=True)
    with pytest.raises(
        UsageError, match="`cuda:1` is not available here; accepted are `auto`, `mps`"
    ):
        choose_device("cuda:1")
    machine(cuda=1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="this machine has 1 CUDA device,"):
        choose_device("cuda:1")


def test_processes_that_train_together_do_not_share_a_card(machine, monkeypatch) -> None:
    for name, value in torchrun_environment(1, 2).items():
        monkeypatch.setenv(name, value)
    machine(cuda=1)
    require_one_each(torch.device("cpu"))
    with pytest.raises(UsageError, match="2 processes share 1 CUDA device; each needs its own"):
        require_one_each(choose_device("cuda"))
    machine(cuda=2)
    require_one_each(choose_device("cuda"))


def _set_by_the_newer_names() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "rounds",
    [
        lambda: None,
        partial(torch.set_float32_matmul_precision, "high"),
        partial(torch.set_float32_matmul_precision, "medium"),
        partial(setattr, torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
        _set_by_the_newer_names,
    ],
    ids=["nothing", "high", "medium", "convolutions", "newer names"],
)
def test_float32_is_computed_exactly_and_what_was_set_comes_back(rounds) -> None:
    backends = torch.backends
    kinds = [backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv]
    kinds.append(backends.mkldnn.matmul)
    values, weight = torch.rand(64, 256, 1, 1), torch.rand(64, 256)
    product, convolved = values[:, :, 0, 0] @ weight.T, F.conv2d(values, weight[:, :, None, None])
    before = torch.get_float32_matmul_precision()
    try:
        rounds()
        was = [kind.fp32_precision for kind in kinds]
        with exactly():
            assert {kind.fp32_precision for kind in kinds} <= {"ieee", "none"}
            assert torch.equal(values[:, :, 0, 0] @ weight.T, product)
            assert torch.equal(F.conv2d(values, weight[:, :, None, None]), convolved)
        assert [kind.fp32_precision for kind in kinds] == was
        if rounds is not _set_by_the_newer_names:
            assert torch.get_float32_matmul_precision() in ("highest", "high", "medium")
    finally:
        backends.mkldnn.conv.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)


def test_float32_is_computed_exactly_until_the_last_of_several_threads_is_done() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with exactly():
            is_in, may_end = threading.Event(), threading.Event()

            def compute_longer() -> None:
                with exactly():
                    is_in.set()
                    may_end.wait(10)
                    found.append(torch.get_float32_matmul_precision())

            found: list[str] = []
            thread = threading.Thread(target=compute_longer)
            thread.start()
            is_in.wait(10)
        found.append(torch.get_float32_matmul_precision())
        may_end.set()
        thread.join()
        assert found == ["highest", "highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_auto_precision_is_bf16_only_on_cards_that_have_it(machine) -> None:
    machine(cuda=1, bf16=True)
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    machine(cuda=1, bf16=False)
    assert choose_precision("auto", torch.device("cuda")) == "fp32"
    assert choose_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(UsageError, match="has no bfloat16"):
        choose_precision("bf16", torch.device("cuda"))
    for name in ("cpu", "mps"):
        assert choose_precision("auto", torch.device(name)) == "fp32"


SECOND = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
FIRST = "32 31 0:29 {} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("0::/", SECOND, {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", SECOND, {"cpu.max": "max 100000"}, None),
        # The least of those that it lies in.
        ("0::/a/b", SECOND, {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
        (
            "4:cpu,cpuacct:/a\n0::/", FIRST.format("/"),
            {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, 2.0,
        ),
        (  # a container that sees its own group alone
            "4:cpu,cpuacct:/docker/1", FIRST.format("/docker/1"),
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0,
        ),
        ("4:cpu:/", FIRST.format("/"), {"cpu/cpu.cfs_quota_us": "-1"}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_read(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], quota: float | None
) -> None:
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    assert this_machine.cpu_quota(tmp_path) == quota


def test_a_quota_bounds_the_threads_and_the_user_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(this_machine.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(this_machine, "cpu_quota", lambda: 2.5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    much, little = 10**12, 18_700_800

    assert this_machine.threads() == 3
    assert (this_machine.threads_for(much), this_machine.threads_for(little)) == (3, 1)
    said = {"5": 5, "1": 1, "4,2": 4, "": 3, "0": 3, "many": 3, "9" * 5000: 1024, "0" * 20 + "6": 6}
    for text, found in said.items():
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert this_machine.threads_for(much) == found, text


def test_what_torchrun_sets_for_each_process_is_not_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(this_machine.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(this_machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(this_machine.torchrun, "local_count", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    assert this_machine.threads_for(10**12) == 4


def test_threads_wait_for_each_other_asleep_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    this_machine.wait_briefly()
    assert int(this_machine.os.environ["GOMP_SPINCOUNT"]) < 10_000

    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    this_machine.wait_briefly()
    assert "GOMP_SPINCOUNT" not in this_machine.os.environ
