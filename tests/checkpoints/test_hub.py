"""Checkpoints of a hub: fetched once, verified, and every way in which that fails.

The hub is a server on 127.0.0.1 (`fake_hub`); the client is the real one, in processes of its own.
"""

import contextlib
import ctypes
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load

from cvt_cli.base import stamps
from cvt_cli.base.errors import CheckpointError
from cvt_cli.base.limits import LARGEST_CONFIG_BYTES
from cvt_cli.base.progress import silent
from cvt_cli.checkpoints import hub as client
from cvt_cli.engines import runtimes
from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from fake_hub import Commit, Hub
from tests_shared import CHELSEA, TINY, Machine, SilentHub, golden_model
from warm_processes import Started

NAME = "somebody/tiny"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small CvT, as this tool saves one."""
    folder = tmp_path_factory.mktemp("tiny")
    preprocessing = Preprocessing(64, 64, "crop")
    weights.save(folder, golden_model(TINY), Labels(tuple("abcdefghij")), preprocessing, "# Tiny\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pickled(checkpoint: dict[str, bytes]) -> dict[str, bytes]:
    """The same with its tensors in a pickle."""
    files = dict(checkpoint)
    buffer = io.BytesIO()
    torch.save(load(files.pop("model.safetensors")), buffer)
    return {**files, "pytorch_model.bin": buffer.getvalue()}


def changed(files: dict[str, bytes], **config: object) -> dict[str, bytes]:
    """The files with other values in their config.json."""
    content = {**json.loads(files["config.json"]), **config}
    return {**files, "config.json": json.dumps(content).encode()}


def blobs(machine: Machine, name: str = NAME) -> set[str]:
    """Names in the client's store of a repository."""
    folder = machine.hub_cache / f"models--{name.replace('/', '--')}" / "blobs"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def predicted(machine: Machine, *arguments: object, **environment: str) -> list[tuple[str, float]]:
    result = machine.run("predict", CHELSEA, "--json", *arguments, **environment)
    assert result.exit_code == 0, result.stderr
    return [(p["label"], p["score"]) for p in result.json["results"][0]["predictions"]]


# --- fetched once


def test_the_second_run_needs_no_hub(hub: Hub, machine: Machine, checkpoint) -> None:
    commit = hub.add(NAME, checkpoint).refs["main"]

    first = machine.run("predict", CHELSEA, "--model", NAME, "--json")
    asked = len(hub.requests)
    hub.stop()
    second = machine.run("predict", CHELSEA, "--model", NAME, "--json")

    assert first.exit_code == 0 and asked > 0
    assert f"downloading model.safetensors of {NAME} at {commit.sha[:7]}" in first.stderr
    assert f"from {hub.url} into `{machine.hub_cache}`" in first.stderr
    assert first.json["revision"] == commit.sha
    assert second.json == first.json
    assert "fetching" not in second.stderr


def test_a_checkpoint_in_the_cache_costs_no_request(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint)
    machine.run("download", NAME)
    hub.requests.clear()

    assert machine.run("info", NAME).exit_code == 0
    assert hub.requests == []


def test_nothing_is_asked_of_the_hub_but_the_checkpoint(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, {**checkpoint, "tf_model.h5": b"x" * 1000, "notes.md": b"x"})

    machine.run("download", NAME)

    wanted = {"config.json", "preprocessor_config.json", "README.md", "model.safetensors"}
    files = {r.path.rsplit("/", 1)[1] for r in hub.requests if "/resolve/" in r.path}
    assert files == wanted
    others = [r.path for r in hub.requests if "/resolve/" not in r.path and "/store/" not in r.path]
    assert others == [f"/api/models/{NAME}"]


def test_safetensors_are_taken_rather_than_a_pickle(
    hub: Hub, machine: Machine, checkpoint, pickled
) -> None:
    hub.add(NAME, {**pickled, **checkpoint})

    assert machine.run("download", NAME).exit_code == 0

    assert len(hub.fetched()) == 1
    assert hub.fetched("model.safetensors") and not hub.fetched("pytorch_model.bin")


def test_a_pickle_is_converted_once_bit_by_bit(hub: Hub, machine: Machine, pickled) -> None:
    hub.add(NAME, pickled)

    first = machine.run("predict", CHELSEA, "--model", NAME, "--json")
    (made,) = machine.own_cache.rglob("*.safetensors")
    changed_at = made.stat().st_mtime_ns
    second = machine.run("predict", CHELSEA, "--model", NAME, "--json")
    told = machine.run("info", NAME, "--json").json

    # The hash is that of the file on the hub, whoever asks.
    sha256 = hashlib.sha256(pickled["pytorch_model.bin"]).hexdigest()
    assert first.json["weights_sha256"] == told["weights_sha256"] == sha256
    assert "converting `pytorch_model.bin`" in first.stderr
    assert "converting" not in second.stderr
    assert second.json == first.json
    assert made.stat().st_mtime_ns == changed_at
    content = bytearray(made.read_bytes())
    content[-5] ^= 0x40
    made.write_bytes(content)
    third = machine.run("predict", CHELSEA, "--model", NAME, "--json")
    assert f"`{made}` is damaged; it is made again" in third.stderr
    assert third.json == first.json
    original = torch.load(io.BytesIO(pickled["pytorch_model.bin"]), weights_only=True)
    converted = load(made.read_bytes())
    assert original.keys() == converted.keys()
    assert all(torch.equal(original[name], converted[name]) for name in original)

    whole = made.read_bytes()
    made.write_bytes(whole[:-5] + bytes(5))
    damaged = machine.run("predict", CHELSEA, "--model", NAME, "--json")
    assert "converting `pytorch_model.bin`" in damaged.stderr
    assert damaged.json == first.json and made.read_bytes() == whole


def test_a_pickle_of_tensors_with_other_strides_or_in_one_memory_is_converted(
    hub: Hub, machine: Machine, pickled
) -> None:
    plain = torch.load(io.BytesIO(pickled["pytorch_model.bin"]), weights_only=True)
    one = torch.tensor(7)
    odd = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else
        one if name.endswith("num_batches_tracked") else tensor
        for name, tensor in plain.items()
    }  # fmt: skip
    matrix = next(name for name in plain if name.endswith("dense.weight"))
    for name, tensors in (("odd", odd), ("sparse", {**plain, matrix: plain[matrix].to_sparse()})):
        torch.save(tensors, buffer := io.BytesIO())
        hub.add(f"somebody/{name}", {**pickled, "pytorch_model.bin": buffer.getvalue()})
    hub.add(NAME, pickled)

    refused = machine.run("predict", CHELSEA, "--model", "somebody/sparse")

    assert predicted(machine, "--model", "somebody/odd") == predicted(machine, "--model", NAME)
    assert refused.exit_code == 1
    assert f"pytorch_model.bin`: `{matrix}` holds no plain numbers" in refused.stderr


def test_a_file_that_another_tool_fetched_is_used(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint)
    script = (
        "from huggingface_hub import hf_hub_download\n"
        f"for name in {list(checkpoint)!r}: hf_hub_download({NAME!r}, name)"
    )
    subprocess.run([sys.executable, "-c", script], env=machine.environment, check=True)
    hub.stop()

    result = machine.run("predict", CHELSEA, "--model", NAME)

    assert result.exit_code == 0, result.stderr


def test_a_file_that_we_fetched_is_found_by_the_hubs_client(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, checkpoint)
    machine.run("download", NAME)
    hub.stop()
    script = (
        "import huggingface_hub\n"
        f"for name in {list(checkpoint)!r}:\n"
        f"    huggingface_hub.hf_hub_download({NAME!r}, name, local_files_only=True)\n"
        "print(huggingface_hub.scan_cache_dir().warnings)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], env=machine.environment, check=True, capture_output=True
    )

    assert done.stdout == b"[]\n"


# --- revisions


def test_a_branch_that_moves_is_followed_by_download_alone(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    repository = hub.add(NAME, checkpoint)
    old = repository.refs["main"]
    machine.run("download", NAME)
    new = Commit(changed(checkpoint, activation="gelu"))
    repository.move(new)

    assert machine.run("info", NAME, "--json").json["revision"] == old.sha
    result = machine.run("download", NAME, "--json")
    hub.stop()

    assert result.json[0]["revision"] == new.sha
    assert machine.run("info", NAME, "--json").json["activation"] == "gelu"
    before = machine.run("info", NAME, "--revision", old.sha, "--json").json
    assert before["activation"] == "quick_gelu"
    assert len(hub.fetched()) == 1  # the weights are the same in both


def test_the_folder_of_a_name_is_that_of_main_also_beside_other_revisions(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    repository = hub.add(NAME, checkpoint)
    main = repository.refs["main"]
    others = [Commit({**checkpoint, "README.md": b"%d" % number}) for number in range(40)]
    last = sorted(others, key=lambda commit: commit.sha)[-4:]
    assert min(commit.sha for commit in last) > main.sha  # where they are listed after it
    repository.refs.update({f"v{number}": commit for number, commit in enumerate(last)})
    for revision in ("v0", "v1", "main"):
        machine.run("download", NAME, "--revision", revision)
    for revision in ("v2", "v3"):  # of which only the config comes
        machine.run("info", NAME, "--revision", revision)

    printed = machine.run("cache", "path", NAME)

    assert Path(printed.stdout.strip()).name == main.sha
    (machine.hub_cache / "models--somebody--tiny" / "refs" / "main").unlink()
    path = machine.run("cache", "path", NAME, "--json").json[NAME]
    assert Path(path).name in {repository.refs[tag].sha for tag in ("main", "v0", "v1")}


def test_folders_are_printed_in_the_order_in_which_they_are_asked_for(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    names = ["somebody/second", "somebody/first"]
    for name in names:
        hub.add(name, checkpoint)
    machine.run("download", *names)

    printed = machine.run("cache", "path", *names).stdout.splitlines()

    assert [Path(line).parents[1].name for line in printed] == [
        "models--somebody--second", "models--somebody--first",
    ]  # fmt: skip


def test_a_damaged_file_that_only_other_tools_use_is_not_said_to_be_replaced(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, checkpoint)
    machine.run("download", NAME)
    (config,) = machine.hub_cache.glob("models--*/snapshots/*/config.json")
    other = config.with_name("tf_model.h5")
    blob = config.resolve().with_name(hashlib.sha256(b"sound").hexdigest())
    blob.write_bytes(b"damaged")
    other.symlink_to(blob)

    verified = machine.run("cache", "verify", NAME)
    fetched = machine.run("download", NAME)
    config.resolve().write_bytes(b"{}")
    hub.stop()
    kept = machine.run("download", NAME)

    assert verified.exit_code == 1 and "replaces it" not in verified.stderr
    assert "cvt does not use it; the tool that downloaded it may replace it" in verified.stderr
    assert fetched.exit_code == 0 and f"`{other}` is damaged; cvt does not use it" in fetched.stderr
    assert kept.exit_code == 1 and f"`{config}` is damaged" in kept.stderr
    assert f"`{NAME}` is in the cache (`{config.parent}`), and the hub" in kept.stderr


def test_what_replaces_a_damaged_file_of_another_revision_is_said(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    old = hub.add(NAME, checkpoint).refs["main"]
    machine.run("download", NAME)
    hub.repositories[NAME].move(Commit(changed(checkpoint, activation="gelu")))
    machine.run("download", NAME)
    (config,) = machine.hub_cache.glob(f"models--*/snapshots/{old.sha}/config.json")
    hint = f"cvt download {NAME} --revision {old.sha}"
    config = config.resolve()
    for content in (b"{}", b"\xff", None):  # nothing that says CvT any more
        config.unlink() if content is None else config.write_bytes(content)
        verified = machine.run("cache", "verify")

        assert verified.exit_code == 1 and f"`{hint}` replaces it" in verified.stderr
        assert machine.run(*hint.split()[1:]).exit_code == 0
        assert machine.run("cache", "verify").exit_code == 0


def test_a_revision_can_be_a_pull_request_or_a_tag(hub: Hub, machine: Machine, checkpoint) -> None:
    repository = hub.add(NAME, changed(checkpoint, activation="gelu"))
    for name in ("refs/pr/4", "v1.0"):
        repository.refs[name] = Commit(checkpoint)

        document = machine.run("download", NAME, "--revision", name, "--json").json
        assert document[0]["revision"] == repository.refs[name].sha
        document = machine.run("info", NAME, "--revision", name, "--offline", "--json").json
        assert document["activation"] == "quick_gelu"


def test_a_revision_of_something_on_this_machine_is_a_usage_error(machine: Machine) -> None:
    result = machine.run("info", "cvt-nano-cifar10", "--revision", "main")

    assert result.exit_code == 2
    assert (
        "`cvt-nano-cifar10` is on this machine; --revision is only for repositories"
        in result.stderr
    )


# --- interrupted, resumed, shared


def slowed(hub: Hub, files: dict[str, bytes], seconds: float) -> int:
    """Publish the files so that the large one takes that long; gives its size."""
    size = max(len(content) for content in files.values())
    hub.add(NAME, files, bytes_per_sec=size / seconds)
    return size


def until_partly_fetched(machine: Machine, process: Started, least: int) -> int:
    """Wait until some bytes of the weights are on disk."""
    folder = machine.hub_cache / f"models--{NAME.replace('/', '--')}" / "blobs"
    while process.poll() is None:
        sizes = [path.stat().st_size for path in folder.glob("*.cvt.incomplete")]
        if sizes and sizes[0] >= least:
            return sizes[0]
        time.sleep(0.02)
    raise AssertionError(f"ended before: {process.communicate()}")


@pytest.mark.parametrize("name", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
@pytest.mark.parametrize("value", ["abc", "3.5", "-1"])
def test_a_time_limit_that_is_no_number_is_named(machine: Machine, name: str, value: str) -> None:
    said = machine.run("download", NAME, **{name: value})

    assert said.exit_code == 1 and said.stdout == ""
    assert f"{name} is `{value}`; accepted is a whole number of seconds" in said.stderr


def test_a_killed_download_goes_on_where_it_stopped(hub: Hub, machine: Machine, checkpoint) -> None:
    size = slowed(hub, checkpoint, seconds=4)
    process = machine.start("download", NAME)
    until_partly_fetched(machine, process, size // 8)
    process.kill()
    process.communicate()

    assert not machine.run("info", NAME, "--offline").stdout
    hub.repositories[NAME].bytes_per_sec = None
    result = machine.run("download", NAME)

    assert result.exit_code == 0, result.stderr
    assert "are here already" in result.stderr
    first, second = hub.fetched()
    assert first.range is None
    assert int(second.range.removeprefix("bytes=").removesuffix("-")) >= size // 8
    assert not any(name.endswith("incomplete") for name in blobs(machine))
    assert machine.run("cache", "verify").exit_code == 0


def test_a_terminal_shows_a_bar_with_size_and_rate(hub: Hub, machine: Machine, checkpoint) -> None:
    slowed(hub, checkpoint, seconds=2)

    shown = machine.on_a_terminal("download", NAME)

    bars = [part for part in shown.split("\r") if "B/s]" in part]
    assert re.search(r"^model.safetensors: +\d+%\|.*\| \d+k/897k \[00:\d\d<.*kB/s\]", bars[-1]), (
        bars
    )


def test_ctrl_c_keeps_what_was_fetched(hub: Hub, machine: Machine, checkpoint) -> None:
    size = slowed(hub, checkpoint, seconds=4)
    process = machine.start("download", NAME)
    until_partly_fetched(machine, process, size // 8)
    process.send_signal(signal.SIGINT)
    interrupted = machine.wait(process)

    assert interrupted.exit_code == 130
    assert "Traceback" not in interrupted.stderr
    assert "are kept" in interrupted.stderr
    hub.repositories[NAME].bytes_per_sec = None
    assert machine.run("download", NAME).exit_code == 0
    assert hub.fetched()[-1].range


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_verified_files(
    hub: Hub, machine: Machine, pickled, kills: int
) -> None:
    slowed(hub, pickled, seconds=2)
    moments = random.Random(kills)
    for _ in range(kills):
        process = machine.start("download", NAME)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.3, 7))  # the conversion that follows is killed too
        process.kill()
        process.communicate()

        for path in machine.hub_cache.rglob("blobs/*"):
            if path.suffix not in (".incomplete", ".tmp"):
                assert_is_what_its_name_says(path)
        # What has no stamp is not used: it was not finished.
        assert all(stamps.verify(path) for path in stamps.stamped_below(machine.own_cache))

    assert machine.run("download", NAME).exit_code == 0
    verified = machine.run("cache", "verify", "--json")
    assert [check["right"] for check in verified.json] == [True] * 5
    assert not list(machine.hub_cache.rglob("*.cvt.incomplete"))


def assert_is_what_its_name_says(path: Path) -> None:
    content = path.read_bytes()
    name = path.name.split(".")[0]
    kind = ".bin" if len(name) == 64 else ".json"
    assert Commit({kind: content}).digest(kind) == name


def test_of_two_processes_one_fetches_and_both_have_it(
    hub: Hub, machine: Machine, checkpoint, tmp_path: Path
) -> None:
    slowed(hub, checkpoint, seconds=60)
    waits = f"another process is downloading model.safetensors of {NAME}"
    said, processes = [tmp_path / "first", tmp_path / "second"], []
    for path in said:
        with path.open("w") as file:
            machine.popen = {"stderr": file.fileno()}
            processes.append(machine.start("download", NAME))
    while not any(waits in path.read_text() for path in said):
        assert None in [process.poll() for process in processes]
        time.sleep(0.02)
    hub.repositories[NAME].bytes_per_sec = None
    codes = [machine.wait(process).exit_code for process in processes]

    assert codes == [0, 0], [path.read_text() for path in said]
    assert len(hub.fetched()) == 1
    assert [waits in path.read_text() for path in said].count(True) == 1
    machine.popen = {}
    assert machine.run("cache", "verify").exit_code == 0


def test_two_processes_convert_to_one_file(hub: Hub, machine: Machine, pickled) -> None:
    hub.add(NAME, pickled)

    processes = [machine.start("download", NAME) for _ in range(2)]
    results = [machine.wait(process) for process in processes]

    assert [result.exit_code for result in results] == [0, 0], results
    (made,) = machine.own_cache.rglob("*.safetensors")
    assert stamps.verify(made)


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, machine: Machine, checkpoint) -> None:
    size = len(checkpoint["model.safetensors"])
    hub.add(NAME, checkpoint, cut_after=size // 2)

    result = machine.run("download", NAME)
    while result.exit_code:  # the client before 1.0 leaves a broken connection to the next call
        assert "it continues where this one stopped" in result.stderr
        assert len(hub.fetched()) < 10
        result = machine.run("download", NAME)

    assert result.exit_code == 0, result.stderr
    assert "Trying to resume" not in result.stderr
    assert hub.fetched()[1].range


# --- without network


def test_without_network_the_error_says_what_where_and_what_to_do(
    hub: Hub, machine: Machine
) -> None:
    hub.stop()

    started = time.perf_counter()
    result = machine.run("predict", CHELSEA, "--model", "cvt-13")
    took = time.perf_counter() - started

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 3  # the error, an empty line, the hint
    assert "`microsoft/cvt-13` is not in the cache" in result.stderr
    assert str(machine.hub_cache) in result.stderr
    assert f"the hub {hub.url} cannot be reached" in result.stderr
    assert "or use a model on this machine: a path" in result.stderr
    assert "`cvt download microsoft/cvt-13`" in result.stderr
    assert "or cvt-nano-cifar10" in result.stderr
    assert took < 10


def test_a_hub_that_does_not_answer_is_given_up_within_three_seconds(machine: Machine) -> None:
    with SilentHub() as silent:
        result = machine.run("info", NAME, HF_ENDPOINT=silent.url)

    assert result.exit_code == 1
    assert f"the hub {silent.url} did not answer within 3 s" in result.stderr
    assert 2.5 < silent.waited_sec < 4.5


@pytest.mark.parametrize(
    ("arguments", "environment", "why"),
    [
        ((), {}, "cannot be reached"),
        (("--offline", "--res", "224"), {}, "is not asked: --offline"),
        (("--revision", "v2", "--offline"), {}, "is not asked: --offline"),
        ((), {"HF_HUB_OFFLINE": "1"}, "is not asked: HF_HUB_OFFLINE is set"),
    ],
)
def test_only_the_default_model_falls_back_to_the_embedded_one(
    hub: Hub, machine: Machine, arguments, environment, why: str
) -> None:
    hub.stop()

    result = machine.run("predict", CHELSEA, "--json", *arguments, **environment)

    assert result.exit_code == 0
    assert result.json["model"] == "cvt-nano-cifar10"
    assert f"is not in the cache (`{machine.hub_cache}`)" in result.stderr
    assert result.stderr.startswith("`microsoft/cvt-21-384-22k`")
    assert why in result.stderr
    assert "using cvt-nano-cifar10 instead" in result.stderr
    assert "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck" in result.stderr
    left_out = "--res, given for the other model, has no effect"
    assert (left_out in result.stderr) == ("--res" in arguments)


def test_it_does_so_too_where_the_hub_or_a_proxy_refuses_it_and_not_where_its_revision_is_none(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    without = machine.run("predict", CHELSEA, "--json")
    hub.add("microsoft/cvt-21-384-22k", checkpoint, status=403)
    refused = machine.run("predict", CHELSEA, "--json")
    of_revision = machine.run("predict", CHELSEA, "--revision", "v2")

    for result, why in ((without, "there is no model"), (refused, "refuses access to")):
        assert result.json["model"] == "cvt-nano-cifar10", result.stderr
        assert why in result.stderr and "using cvt-nano-cifar10 instead" in result.stderr
    assert of_revision.exit_code == 1


def test_evaluation_does_not_fall_back(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    hub.stop()
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(CHELSEA, tmp_path / "data" / name)

    result = machine.run("evaluate", "--data", tmp_path / "data")

    assert result.exit_code == 1
    assert "`microsoft/cvt-21-384-22k` is not in the cache" in result.stderr


def test_download_without_network_keeps_the_copy_and_says_so(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, checkpoint)
    machine.run("download", NAME)
    hub.stop()

    result = machine.run("download", NAME)

    assert result.exit_code == 0
    assert "the copy in the cache stays, and was not checked" in result.stderr


def test_a_sign_in_page_is_not_taken_for_a_hub(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add("microsoft/cvt-21-384-22k", checkpoint, html=True)

    result = machine.run("predict", CHELSEA, "--json")

    assert result.json["model"] == "cvt-nano-cifar10"


# --- what the hub refuses


def test_an_unknown_repository_is_answered_with_the_nearest_names(
    hub: Hub, machine: Machine
) -> None:
    result = machine.run("predict", CHELSEA, "--model", "microsoft/cvt-12")

    assert result.exit_code == 1
    assert "there is no model `microsoft/cvt-12`: neither a file or folder here" in result.stderr
    assert f"nor a repository on {hub.url}" in result.stderr
    assert "did you mean `cvt-21` or `cvt-13`" in result.stderr
    assert machine.run("predict", CHELSEA, "--model", "cvt-31").stderr.startswith(
        "error: there is no model `cvt-31`: neither a file or folder, nor a known name"
    )


def test_an_unknown_revision_is_named(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint)

    result = machine.run("download", NAME, "--revision", "v9")

    assert result.exit_code == 1
    assert f"`{NAME}` has no revision `v9`" in result.stderr


def test_a_private_repository_needs_its_token_and_only_the_hub_sees_it(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, checkpoint, token="secret")

    without = machine.run("download", NAME)
    expired = machine.run("download", NAME, HF_TOKEN="expired")
    right = machine.run("download", NAME, HF_TOKEN="secret")

    assert without.exit_code == 1 and f"there is no model `{NAME}`" in without.stderr
    assert "set HF_TOKEN, or run `hf auth login`" in without.stderr
    assert expired.exit_code == 1 and "rejects the token" in expired.stderr
    assert right.exit_code == 0, right.stderr
    assert [request.authorization for request in hub.fetched()] == [None]


def test_a_gated_repository_says_where_to_ask(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint, gated=True, token="secret")

    result = machine.run("download", NAME)

    assert result.exit_code == 1
    assert f"`{NAME}` is gated, and this account has no access to it (403)" in result.stderr
    assert f"request access on {hub.url}/{NAME}" in result.stderr
    assert machine.run("download", NAME, HF_TOKEN="secret").exit_code == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "rejects the token"),
        (403, f"refuses access to `{NAME}` (403)"),
        (418, f"answers 418, asked for `{NAME}`"),
        (429, "accepts no more requests for now (429)"),
        (500, "fails with status 500"),
        (503, "fails with status 503"),
    ],
)
def test_a_status_is_explained(
    hub: Hub, machine: Machine, checkpoint, status: int, message: str
) -> None:
    hub.add(NAME, checkpoint, status=status)

    result = machine.run("download", NAME)

    assert result.exit_code == 1
    # Without an error code in the answer the client takes 401 for a repository that is not there.
    assert message in result.stderr or (
        status == 401 and f"there is no model `{NAME}`" in result.stderr
    )
    assert ("try again in 17 s" in result.stderr) == (status == 429)
    assert "Traceback" not in result.stderr


@pytest.mark.slow  # the client itself tries for half a minute
def test_files_that_the_hub_fails_to_send_are_explained(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, checkpoint, file_status=500)

    result = machine.run("download", NAME)

    assert result.exit_code == 1
    assert "fails with status 500" in result.stderr
    assert result.stderr.count("\n") == 3


# --- what the hub sends


def test_a_file_with_a_wrong_hash_is_thrown_away(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint, announced="0" * 64)

    result = machine.run("predict", CHELSEA, "--model", NAME)

    assert result.exit_code == 1
    right = Commit(checkpoint).digest("model.safetensors")
    assert f"its hash is {right}, not {'0' * 64}; it was discarded" in result.stderr
    assert not any(len(name) >= 64 for name in blobs(machine))
    assert "is not in the cache" in machine.run("info", NAME, "--offline").stderr


def test_a_file_that_is_too_short_is_not_taken_for_whole(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    repository = hub.add(NAME, checkpoint, shorter_by=1000)

    result = machine.run("download", NAME)
    repository.shorter_by = 0
    again = machine.run("download", NAME)

    assert result.exit_code == 1
    assert f"the download of `{NAME}` from {hub.url} was interrupted" in result.stderr
    assert "it continues where this one stopped" in result.stderr
    assert again.exit_code == 0
    assert hub.fetched()[-1].range  # the last thousand bytes


def test_no_more_of_a_file_is_taken_than_was_announced(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    repository = hub.add(NAME, checkpoint, longer_by=100)

    result = machine.run("download", NAME)
    repository.longer_by = 0
    again = machine.run("download", NAME)

    assert result.exit_code == 1
    assert f"error: {hub.url} sends more of model.safetensors of {NAME} than" in result.stderr
    assert again.exit_code == 0


@pytest.fixture
def asked_from_here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process asks the hub of the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("asked_from_here")
def test_a_hub_whose_bytes_come_one_by_one_is_given_up(
    hub: Hub, checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add(NAME, checkpoint, drips=True)
    monkeypatch.setattr(client, "SMALL_FILE_SEC", 1.0)

    with pytest.raises(CheckpointError, match="was interrupted: did not answer within 1 s"):
        client.fetch(NAME, say=lambda message: None, progress=silent)
    repository.drips = False


@pytest.mark.usefixtures("asked_from_here")
def test_weights_whose_headers_come_byte_by_byte_are_given_up(
    hub: Hub, checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add(NAME, checkpoint, weights_drip=True)
    monkeypatch.setattr(client, "SILENT_SEC", 1.0)

    with pytest.raises(CheckpointError, match="was interrupted: did not answer within 1 s"):
        client.fetch(NAME, say=lambda message: None, progress=silent)
    repository.weights_drip = False


def test_a_config_that_is_too_large_is_refused_before_it_is_fetched(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    padding = b" " * LARGEST_CONFIG_BYTES
    hub.add(NAME, {**checkpoint, "config.json": checkpoint["config.json"] + padding})

    result = machine.run("info", NAME)

    assert result.exit_code == 1
    assert f"`config.json` of `{NAME}` has " in result.stderr
    assert not hub.fetched("config.json")


def test_a_file_without_a_hash_is_not_taken(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint, announced="../../escaped")

    result = machine.run("download", NAME)

    assert result.exit_code == 1
    assert "announces no hash for `model.safetensors`" in result.stderr
    assert not list(machine.home.rglob("escaped*"))


REFUSED = {
    "an empty repository": ({".gitattributes": b""}, "no `config.json`; it holds .gitattributes"),
    "another kind of model": (
        {"config.json": b'{"model_type": "vit"}', "model.safetensors": b"x"},
        "describes a model of type 'vit'; accepted is 'cvt'",
    ),
    "another library's": (
        {"config.json": b'{"architecture": "convnext_tiny"}', "model.safetensors": b"x"},
        "describes a model of type 'convnext_tiny'",
    ),
    "no JSON": ({"config.json": b"{", "model.safetensors": b"x"}, "cannot be read as JSON"),
    "weights for TensorFlow alone": (None, "has no weights that can be read"),
    "an unsupported value": (None, "`qkv_projection_method` is ['avg', 'avg', 'avg']"),
    "a wrong config": (None, "does not fit what `"),
    "an unnamed head of 21,841": (None, "has 21841 classes and no class names"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_usable_cvt_is_refused_by_name(
    hub: Hub, machine: Machine, checkpoint, case: str
) -> None:
    files, message = REFUSED[case]
    if case == "weights for TensorFlow alone":
        files = {"config.json": checkpoint["config.json"], "tf_model.h5": b"x"}
    elif case == "an unsupported value":
        files = changed(checkpoint, qkv_projection_method=["avg"] * 3)
    elif case == "a wrong config":
        files = changed(checkpoint, depth=[1, 2, 4])
    elif case == "an unnamed head of 21,841":
        files = with_head(checkpoint, 21841)
    hub.add(NAME, files)

    result = machine.run("predict", CHELSEA, "--model", NAME)

    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""
    if case not in ("a wrong config", "an unnamed head of 21,841"):
        assert hub.fetched() == []  # refused before the large file is fetched


def with_head(files: dict[str, bytes], classes: int) -> dict[str, bytes]:
    """The same checkpoint with a head of that many classes, and no names for them."""
    from safetensors.torch import save

    tensors = load(files["model.safetensors"])
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = torch.zeros(classes, *tensors[name].shape[1:])
    config = json.loads(files["config.json"])
    del config["id2label"], config["label2id"]
    config["num_labels"] = classes
    return {
        **files, "model.safetensors": save(tensors), "config.json": json.dumps(config).encode()
    }  # fmt: skip


def test_a_repository_without_preprocessing_is_asked_for_it_once(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, {n: c for n, c in checkpoint.items() if n != "preprocessor_config.json"})
    machine.run("download", NAME)
    hub.requests.clear()

    result = machine.run("info", NAME)

    assert "has no `preprocessor_config.json`" in result.stderr
    assert hub.requests == []


# --- a cache in a bad state


def test_a_half_written_cache_is_completed_or_named(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint)
    machine.run("download", NAME)
    (snapshot,) = machine.hub_cache.glob("models--*/snapshots/*")
    (snapshot / "model.safetensors").resolve().unlink()

    offline = machine.run("predict", CHELSEA, "--model", NAME, "--offline")
    online = machine.run("predict", CHELSEA, "--model", NAME)

    assert offline.exit_code == 1
    assert f"is in the cache without `model.safetensors` (`{snapshot}`)" in offline.stderr
    assert online.exit_code == 0


def test_a_damaged_file_is_refused_found_and_mended(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint)
    machine.run("download", NAME)
    (snapshot,) = machine.hub_cache.glob("models--*/snapshots/*")
    for name in ("model.safetensors", "config.json"):
        blob = (snapshot / name).resolve()
        content = bytearray(blob.read_bytes())
        content[-5] ^= 1
        blob.write_bytes(content)

    used = machine.run("predict", CHELSEA, "--model", NAME, "--offline")
    verified = machine.run("cache", "verify", NAME)
    mended = machine.run("download", NAME)

    assert used.exit_code == 1
    assert f"`{snapshot / 'model.safetensors'}` is damaged" in used.stderr
    assert f"`cvt download {NAME}` downloads it again" in used.stderr
    assert verified.exit_code == 1
    assert verified.stderr.count("is damaged") == 2
    assert mended.exit_code == 0, mended.stderr
    assert machine.run("cache", "verify", NAME).exit_code == 0


def test_damage_that_keeps_size_and_time_is_found_by_verify(
    hub: Hub, machine: Machine, pickled
) -> None:
    hub.add(NAME, pickled)
    machine.run("download", NAME)
    (snapshot,) = machine.hub_cache.glob("models--*/snapshots/*")
    (made,) = machine.own_cache.rglob("*.safetensors")
    for path in ((snapshot / "pytorch_model.bin").resolve(), made):
        stat = path.stat()
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    verified = machine.run("cache", "verify", "--json")

    assert verified.exit_code == 1
    assert [check["right"] for check in verified.json].count(False) == 2
    assert not made.exists()
    assert "is damaged" in machine.run("predict", CHELSEA, "--model", NAME, "--offline").stderr
    assert machine.run("download", NAME).exit_code == 0
    assert machine.run("cache", "verify").exit_code == 0


def test_a_link_out_of_the_cache_is_not_followed(
    hub: Hub, machine: Machine, checkpoint, tmp_path: Path
) -> None:
    hub.add(NAME, checkpoint)
    hub.add("z/another", checkpoint)
    machine.run("download", NAME, "z/another")
    (snapshot,) = machine.hub_cache.glob(f"models--{NAME.replace('/', '--')}/snapshots/*")
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(checkpoint["model.safetensors"])
    link = snapshot / "model.safetensors"
    link.unlink()
    link.symlink_to(elsewhere)

    result = machine.run("predict", CHELSEA, "--model", NAME)
    verified = machine.run("cache", "verify", "--json")

    assert result.exit_code == verified.exit_code == 1
    assert f"`{link}` links out of the hub's cache, to `{elsewhere}`" in result.stderr
    assert f"`{link}` links out of the hub's cache, to `{elsewhere}`" in verified.stderr
    assert {check["name"] for check in verified.json} == {"z/another"}  # what comes after it
    assert machine.run("cache", "remove", NAME).exit_code == 0
    assert elsewhere.exists()


def without_privilege() -> None:
    """Let permission bits hold for root too: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE, _READ_SEARCH."""
    with contextlib.suppress(OSError, AttributeError):
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def test_what_may_not_be_read_in_the_cache_is_not_taken_for_right(machine: Machine) -> None:
    machine.popen = {"preexec_fn": without_privilege}
    hidden = machine.own_cache / "graphs" / "1234"
    hidden.mkdir(parents=True)
    hidden.chmod(0)
    try:
        verified, listed = machine.run("cache", "verify"), machine.run("cache", "list")
    finally:
        hidden.chmod(0o755)

    for result in (verified, listed):
        assert result.exit_code == 1
        assert f"error: `{hidden}`: Permission denied" in result.stderr


def test_a_read_only_cache_can_be_used_but_not_added_to(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, checkpoint)
    hub.add("somebody/other", changed(checkpoint, activation="gelu"))
    machine.run("download", NAME)
    machine.popen = {"preexec_fn": without_privilege}
    try:
        for folder in (machine.home / "hf", machine.own_cache):
            subprocess.run(["chmod", "-R", "a-w", folder], check=True)

        used = machine.run("predict", CHELSEA, "--model", NAME)
        added = machine.run("predict", CHELSEA, "--model", "somebody/other")
    finally:
        subprocess.run(["chmod", "-R", "u+w", machine.home], check=True)

    assert used.exit_code == 0, used.stderr
    assert added.exit_code == 1
    assert (
        f"cannot write to the hub's cache `{machine.hub_cache}`: Permission denied" in added.stderr
    )
    assert "HF_HUB_CACHE or HF_HOME" in added.stderr


def test_where_our_cache_cannot_be_written_the_pickle_is_read(
    hub: Hub, machine: Machine, pickled
) -> None:
    hub.add(NAME, pickled)
    (machine.home / "file").write_text("")

    result = machine.run("predict", CHELSEA, "--model", NAME, CVT_CACHE=f"{machine.home}/file/cvt")

    assert result.exit_code == 0, result.stderr
    assert "reading the pickle instead" in result.stderr


def test_a_disk_that_fills_up_while_converting_leaves_nothing(
    hub: Hub, machine: Machine, pickled
) -> None:
    size = len(pickled["pytorch_model.bin"])
    hub.add(NAME, pickled)
    machine.run("download", NAME, CVT_CACHE=str(machine.home / "another"))
    machine.popen = {"largest_file": size // 2}

    result = machine.run("predict", CHELSEA, "--model", NAME)

    assert result.exit_code == 0, result.stderr
    assert "reading the pickle instead" in result.stderr
    assert not list(machine.own_cache.rglob("*.safetensors*"))


def test_a_full_disk_stops_the_download_and_keeps_what_is_there(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    size = len(checkpoint["model.safetensors"])
    hub.add(NAME, checkpoint)
    machine.popen = {"largest_file": size // 2}

    full = machine.run("predict", CHELSEA, "--model", NAME)
    machine.popen = {}
    again = machine.run("predict", CHELSEA, "--model", NAME)

    assert full.exit_code == 1
    assert f"cannot write to the hub's cache `{machine.hub_cache}`: File too large" in full.stderr
    assert "what was downloaded so far is kept" in full.stderr
    assert again.exit_code == 0
    assert hub.fetched()[-1].range


# --- cvt models, cvt cache


def test_models_shows_what_is_here(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add("microsoft/cvt-13", changed(checkpoint, id2label={}))
    before = machine.run("models", "--json").json
    hub.add("microsoft/cvt-13", checkpoint)
    machine.run("download", "cvt-13")
    after = machine.run("models", "--json").json

    assert [row["cached"] for row in before] == [False] * 7 + [True]
    assert [row["cached"] for row in after] == [True] + [False] * 6 + [True]
    assert after[0]["bytes"] == sum(len(content) for content in checkpoint.values())
    assert after[0]["revision"] == hub.repositories["microsoft/cvt-13"].refs["main"].sha
    row = machine.run("models").stdout.splitlines()[4]
    assert row.split()[:3] == ["cvt-13", f"{after[0]['bytes'] / 1e3:.1f}", "kB"]


def test_the_cache_is_listed_found_and_removed(hub: Hub, machine: Machine, pickled) -> None:
    commit = hub.add(NAME, pickled).refs["main"]
    hub.add("somebody/else", changed(pickled, activation="gelu"))
    machine.run("download", NAME, "somebody/else")
    other = machine.hub_cache / "models--google--vit" / "snapshots" / ("a" * 40)
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "vit"}')

    listed = machine.run("cache", "list", "--json").json
    path = machine.run("cache", "path", NAME).stdout.strip()
    removed = machine.run("cache", "remove", NAME)
    again = machine.run("cache", "remove", NAME)

    assert [row["name"] for row in listed] == ["somebody/else", NAME]
    assert listed[1]["revision"] == commit.sha and listed[1]["refs"] == ["main"]
    assert listed[1]["bytes"] == sum(len(content) for content in pickled.values())
    assert listed[1]["made_bytes"] > 0 and listed[1]["missing"] == []
    used = datetime.fromisoformat(listed[1]["last_use"])
    assert abs((datetime.now().astimezone() - used).total_seconds()) < 300
    assert path == listed[1]["path"]
    assert removed.stdout.startswith(f"removed {NAME}, ")
    assert not Path(path).exists()
    assert again.exit_code == 1 and f"holds nothing of `{NAME}`" in again.stderr
    assert [r["name"] for r in machine.run("cache", "list", "--json").json] == ["somebody/else"]
    assert machine.run("cache", "remove", "--all").exit_code == 0
    assert other.exists()
    assert not list(machine.own_cache.rglob("*.safetensors"))


def test_what_was_prepared_of_a_model_elsewhere_is_listed_and_removed(
    machine: Machine, tmp_path: Path, checkpoint
) -> None:
    folder = tmp_path / "run" / "best"
    folder.mkdir(parents=True)
    for name, content in checkpoint.items():
        (folder / name).write_bytes(content)
    told = ("predict", CHELSEA, "--engine", "onnxruntime", "--model")
    for model in (folder, "cvt-nano-cifar10"):
        assert machine.run(*told, model).exit_code == 0
    shutil.rmtree(folder)

    listed = machine.run("cache", "list", "--json").json
    table = machine.run("cache", "list").stdout
    removed = machine.run("cache", "remove", folder)
    left = machine.run("cache", "list", "--json").json
    everything = machine.run("cache", "remove", "--all", "--json").json

    assert [row["name"] for row in listed] == [str(folder), "cvt-nano-cifar10"]
    assert all(row["made_bytes"] > 1_000 for row in listed)
    assert str(folder) in table and "cvt-nano-cifar10" in table
    assert removed.exit_code == 0 and removed.stdout.startswith(f"removed {folder}, ")
    assert [row["name"] for row in left] == ["cvt-nano-cifar10"]
    assert list(everything) == ["cvt-nano-cifar10"]
    assert not list((machine.own_cache / "graphs").iterdir())


@pytest.mark.parametrize("told", ["run", "./run/", "run/best/"])
def test_what_was_prepared_of_a_run_is_named_by_its_folder(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run" / "best"
    folder.mkdir(parents=True)
    for name, content in checkpoint.items():
        (folder / name).write_bytes(content)
    predicted = machine.run("predict", CHELSEA, "--engine", "onnxruntime", "--model", "run")
    assert predicted.exit_code == 0
    (graph,) = (machine.own_cache / "graphs").glob("*/*/model.onnx")

    path = machine.run("cache", "path", told)
    verified = machine.run("cache", "verify", told, "--json")
    removed = machine.run("cache", "remove", told)
    again = machine.run("cache", "remove", "run")

    assert path.stdout == f"{graph.parents[1]}\n"
    assert verified.json == [{"name": "run/best", "path": str(graph), "right": True}]
    assert removed.exit_code == 0 and removed.stdout.startswith("removed run/best, ")
    assert not graph.parents[1].exists()
    assert again.exit_code == 1 and "holds nothing of `run/best`" in again.stderr


def test_a_folder_in_a_repository_is_verified_with_it(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add(NAME, {**checkpoint, "onnx/model.bin": b"another tool's"})
    machine.run("download", NAME)
    script = f"import huggingface_hub as h; h.hf_hub_download({NAME!r}, 'onnx/model.bin')"
    subprocess.run([sys.executable, "-c", script], env=machine.environment, check=True)

    verified = machine.run("cache", "verify", "--json")

    assert verified.exit_code == 0
    assert [check["right"] for check in verified.json] == [True] * 5


@pytest.mark.parametrize("name", ["some--body/x", "some..body/x"])
def test_a_name_that_no_hub_takes_is_refused(machine: Machine, name: str) -> None:
    result = machine.run("info", name)

    assert result.exit_code == 1
    assert f"`{name}`" in result.stderr and "cannot be reached" not in result.stderr


def test_a_runtime_that_is_not_installed_is_said_before_anything_is_downloaded(
    cvt, monkeypatch
) -> None:
    monkeypatch.setattr(runtimes, "installed", lambda package: package != "openvino")
    monkeypatch.setattr(client, "fetch", lambda *_, **__: pytest.fail("it was downloaded first"))

    result = cvt("download", NAME, "--engine", "openvino")

    assert result.exit_code == 2 and "engine `openvino` is not installed" in result.stderr


def test_a_checkpoint_of_which_no_graph_can_be_made_does_not_keep_others_from_it(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    hub.add("somebody/odd", changed(checkpoint, mlp_ratio=[2.0, 2.0, 2.0]))
    hub.add(NAME, checkpoint)

    done = machine.run("download", "somebody/odd", NAME, "--engine", "onnxruntime", "--json")

    assert done.exit_code == 1 and "model.safetensors` does not fit" in done.stderr
    assert [row["name"] for row in done.json] == [NAME]
    assert list(machine.own_cache.rglob("model.onnx"))


def test_of_two_repositories_of_one_commit_the_one_that_is_named_is_removed(
    hub: Hub, machine: Machine, checkpoint
) -> None:
    names = ("somebody/before", "somebody/renamed", "somebody/after")
    commits = {hub.add(name, checkpoint).refs["main"].sha for name in names}
    machine.run("download", *names)

    removed = machine.run("cache", "remove", "somebody/renamed")

    assert len(commits) == 1 and removed.exit_code == 0
    left = {row["name"] for row in machine.run("cache", "list", "--json").json}
    assert left == {"somebody/before", "somebody/after"}


def test_download_prepares_a_graph_that_goes_with_its_checkpoint(
    hub: Hub, machine: Machine, pickled, tmp_path: Path
) -> None:
    hub.add(NAME, pickled)

    (tmp_path / "here" / NAME).mkdir(parents=True)  # a folder of that name is not what is meant
    machine.popen = {"cwd": tmp_path / "here"}
    downloaded = machine.run("download", NAME, "--engine", "onnxruntime")
    machine.popen = {}
    (graph,) = machine.own_cache.rglob("model.onnx")
    size = graph.stat().st_size
    answered = machine.run("predict", CHELSEA, "--model", NAME, "--json")
    listed = machine.run("cache", "list", "--json").json
    removed = machine.run("cache", "remove", NAME)

    assert downloaded.exit_code == 0, downloaded.stderr
    assert answered.json["engine"] == "onnxruntime"
    assert listed[0]["made_bytes"] > size
    assert removed.exit_code == 0
    assert not list(machine.own_cache.rglob("model.onnx"))


@pytest.mark.parametrize("form", ["checkpoint", "pickled"])
def test_what_is_made_of_a_cache_that_was_copied_without_its_links_is_known(
    hub: Hub, machine: Machine, request: pytest.FixtureRequest, form: str
) -> None:
    hub.add(NAME, request.getfixturevalue(form))
    machine.run("download", NAME)
    shutil.rmtree(machine.own_cache)
    (snapshot,) = machine.hub_cache.glob("models--*/snapshots/*")
    for link in list(snapshot.iterdir()):
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)
    shutil.rmtree(snapshot.parent.parent / "blobs")
    given = ("predict", CHELSEA, "--model", NAME, "--offline", "--json")
    assert machine.run(*given, "--engine", "onnxruntime").exit_code == 0
    made = [*machine.own_cache.rglob("*.onnx"), *machine.own_cache.rglob("*.safetensors")]

    listed = machine.run("cache", "list", "--json").json
    assert listed[0]["made_bytes"] >= sum(path.stat().st_size for path in made)
    for path in made:
        stat = path.stat()
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    verified = machine.run("cache", "verify", NAME, "--json")

    assert [check["right"] for check in verified.json].count(False) == len(made)
    assert verified.exit_code == 1 and not any(path.exists() for path in made)
    assert machine.run(*given, "--engine", "onnxruntime").exit_code == 0
    assert machine.run("cache", "remove", NAME).exit_code == 0
    assert not any(path.exists() for path in made)


def test_what_is_being_fetched_is_not_removed(hub: Hub, machine: Machine, checkpoint) -> None:
    size = slowed(hub, checkpoint, seconds=4)
    process = machine.start("download", NAME)
    until_partly_fetched(machine, process, size // 8)

    removed = machine.run("cache", "remove", NAME)

    assert removed.exit_code == 1
    assert f"`{NAME}` is being downloaded by another process" in removed.stderr
    hub.repositories[NAME].bytes_per_sec = None
    assert machine.wait(process).exit_code == 0


def test_download_goes_on_after_one_that_fails(hub: Hub, machine: Machine, checkpoint) -> None:
    hub.add(NAME, checkpoint)

    result = machine.run("download", "somebody/nothing", NAME, "--json")

    assert result.exit_code == 1
    assert [row["name"] for row in result.json] == [NAME]
    assert "there is no model `somebody/nothing`" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("download",), "name models, or use --all"),
        (("download", "--all", "cvt-13"), "name models, or use --all"),
        (("download", "cvt-31"), "neither a known model nor a hub repository"),
        (("download", "cvt-nano-cifar10"), "is part of the package"),
        (("cache", "remove"), "name models, or use --all"),
        (("cache", "remove", "../../etc"), "neither a known model nor a hub repository"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(cvt, arguments, message: str) -> None:
    result = cvt(*arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_the_hint_of_a_revision_that_is_not_here_fetches_that_revision(machine: Machine) -> None:
    result = machine.run("info", "some/one", "--revision", "refs/pr/3", "--offline")

    assert result.exit_code == 1
    assert "`cvt download some/one --revision refs/pr/3` puts it into" in result.stderr
