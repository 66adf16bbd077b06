"""`cvt push`: what is sent is what can be fetched again, and every way in which that fails.

The hub is a server on 127.0.0.1 (`fake_hub`); the client is the real one, in processes of its own.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from cvt_cli.base.errors import CheckpointError
from cvt_cli.base.progress import silent
from cvt_cli.checkpoints import upload
from cvt_cli.checkpoints.names import to_reference
from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from fake_hub import Hub
from tests_shared import CHELSEA, TINY, Machine, Result, SilentHub, golden_model
from warm_processes import Started

NAME = "somebody/tiny"
CARD = "---\nlibrary_name: cvt-cli\n---\n\n# Tiny\n\n| top-1 | not measured |\n"
FILES = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CvT, as this tool saves one."""
    folder = tmp_path_factory.mktemp("tiny")
    preprocessing = Preprocessing(64, 64, "crop")
    weights.save(folder, golden_model(TINY), Labels(tuple("abcdefghij")), preprocessing, CARD)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A training run with that CvT as its best epoch, and what else lies in such a folder."""
    run = tmp_path / "run"
    for place in ("best", "last"):
        shutil.copytree(saved, run / place)
    (run / "last" / "README.md").write_text(CARD + "the last\n")
    (run / "state").mkdir()
    for name in ("metrics.csv", "plan.json", "state/optimizer.pt", "best/.notes", "best/x.log"):
        (run / name).write_text("mine alone")
    return run


@pytest.fixture
def somebody(machine: Machine) -> Machine:
    """A computer whose user has a token for what is called somebody/…"""
    machine.environment["HF_TOKEN"] = "TOKEN"
    return machine


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def held(hub: Hub, name: str = NAME) -> dict[str, bytes]:
    """What a repository holds, but for the file that every repository begins with."""
    files = hub.repositories[name].refs["main"].files
    return {name: files[name] for name in files if name != ".gitattributes"}


# --- sent and fetched again


def test_results_that_the_folder_has_no_more_leave_the_repository(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    results = run / "best" / ".eval_results"
    results.mkdir()
    for name in ("cvt.yaml", "mine.yaml"):
        (results / name).write_text("- dataset: {id: a/b, task_id: c}\n  value: 0.5\n")
    assert somebody.run("push", run, NAME).exit_code == 0
    assert set(held(hub)) == {*FILES, ".eval_results/cvt.yaml", ".eval_results/mine.yaml"}
    shutil.rmtree(results)

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 0, result.stderr
    assert "removing .eval_results/cvt.yaml, keeping .eval_results/mine.yaml" in result.stderr
    assert set(held(hub)) == {*FILES, ".eval_results/mine.yaml"}
    assert "nothing to push" in somebody.run("push", run, NAME).stderr


def test_what_was_pushed_is_fetched_again_bit_by_bit(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    pushed = somebody.run("push", run, NAME)
    fetched = somebody.run("download", NAME, "--json")

    assert pushed.exit_code == 0, pushed.stderr
    commit = hub.repositories[NAME].refs["main"].sha
    assert pushed.stdout == f"{hub.url}/{NAME}\ncommit {commit}\n"
    assert fetched.json[0]["revision"] == commit
    assert content(Path(fetched.json[0]["path"])) == content(run / "best")

    ours, theirs = (
        somebody.run("predict", CHELSEA, "--model", model, "--json").json
        for model in (run / "best", NAME)
    )
    assert theirs["revision"] == commit
    assert theirs["results"] == ours["results"]


def test_what_finetune_made_can_be_pushed_as_it_is(
    cvt, hub: Hub, somebody: Machine, signdigits: Path, tmp_path: Path
) -> None:
    for name in ("0", "1"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        for path in sorted((signdigits / "train" / name).iterdir())[:12]:
            shutil.copy(path, tmp_path / "digits" / name)
    data = tmp_path / "digits"
    trained = somebody.run(
        "finetune", "--data", data, "--model", "cvt-nano-cifar10", "--epochs", "2",
        "-o", tmp_path / "run",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.stderr

    pushed = somebody.run("push", tmp_path / "run", NAME)

    assert pushed.exit_code == 0, pushed.stderr
    assert "metadata" not in pushed.stderr  # the hub has nothing to say of the card
    results = ".eval_results/cvt.yaml"
    best = tmp_path / "run" / "best"
    assert held(hub) == content(best) | {results: (best / results).read_bytes()}
    assert somebody.run("info", NAME, "--json").json["classes"] == ["0", "1"]
    # By its name on the hub it is known as what was trained on this data, as it is by its folder.
    whole = somebody.run("evaluate", data, "--model", NAME)
    aside = [
        somebody.run("evaluate", data, "--model", model, "--split", "val", "--json").json
        for model in (tmp_path / "run", NAME)
    ]
    assert "of these 24 images were trained on; --split val" in whole.stdout
    assert aside[0]["n"] == aside[1]["n"] < 24 and aside[0]["top1"] == aside[1]["top1"]


def test_of_a_run_that_is_saving_an_epoch_what_is_sent_is_of_one_epoch(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    card = run / "best" / "README.md"
    card.unlink()  # as while an epoch is saved, until its weights are there
    held_by_training = os.open(run / "best", os.O_RDONLY)
    fcntl.flock(held_by_training, fcntl.LOCK_EX)
    process = somebody.start("push", run, NAME)
    assert process.stderr is not None
    said = process.stderr.readline()

    card.write_text(CARD + "of this epoch")
    os.close(held_by_training)

    result = somebody.wait(process)
    assert f"another process is writing `{run / 'best'}`; waiting for it" in said
    assert result.exit_code == 0 and "no model card" not in result.stderr
    assert held(hub) == content(run / "best")


def test_only_the_checkpoints_own_files_travel(hub: Hub, somebody: Machine, run: Path) -> None:
    result = somebody.run("push", run, NAME)

    assert held(hub) == content(run / "best")
    size = sum(len(content) for content in held(hub).values())
    assert (
        "pushing config.json, preprocessor_config.json, model.safetensors, README.md "
        f"({size / 1000:.1f} kB) of `{run / 'best'}` to {hub.url}/{NAME}, a new repository, "
        "public unless its owner's default is private\n"
    ) in result.stderr
    assert len(hub.sent("PUT", "/store/")) == 1


@pytest.mark.parametrize("place", ["last", "last/model.safetensors"])
def test_any_checkpoint_folder_can_be_pushed(
    hub: Hub, somebody: Machine, run: Path, place: str
) -> None:
    result = somebody.run("push", run / place, NAME, "--json")

    assert held(hub) == content(run / "last")
    assert result.json == {
        "repository": NAME,
        "url": f"{hub.url}/{NAME}",
        "revision": hub.repositories[NAME].refs["main"].sha,
        "created": True,
        "changed": True,
        "path": str(run / "last"),
        "files": [
            {"name": name, "bytes": (run / "last" / name).stat().st_size}
            for name in ("config.json", "preprocessor_config.json", FILES[2], "README.md")
        ],
    }


def test_a_large_file_is_sent_in_parts_where_the_hub_wants_that(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    hub.add(NAME, {".gitattributes": b""}, part_size=300_000)

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 0, result.stderr
    assert len(hub.sent("PUT", "/store/")) == 3
    assert held(hub) == content(run / "best")


def test_pushing_imports_no_torch(hub: Hub, somebody: Machine, run: Path) -> None:
    script = (
        "import sys; from cvt_cli.cli import app\n"
        f"try: app(['push', {str(run)!r}, {NAME!r}], prog_name='cvt')\n"
        "except SystemExit as e: assert not e.code\n"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], env=somebody.environment, check=True, capture_output=True
    )

    assert done.stdout.endswith(b"\n[]\n")
    assert held(hub) == content(run / "best")


def test_a_terminal_shows_a_bar_with_size_and_rate(hub: Hub, somebody: Machine, run: Path) -> None:
    shown = somebody.on_a_terminal("push", run, NAME)

    bars = [part for part in shown.split("\r") if "B/s]" in part]
    assert re.search(rf"^{NAME}: +\d+%\|.*\| [\d.]+k/899k \[00:\d\d<.*B/s\]", bars[-1]), shown


# --- what is there already


def test_the_same_again_changes_nothing_and_says_so(hub: Hub, somebody: Machine, run: Path) -> None:
    first = somebody.run("push", run, NAME)
    hub.requests.clear()
    second = somebody.run("push", run, NAME)
    document = somebody.run("push", run, NAME, "--json").json

    assert second.exit_code == 0
    assert second.stdout == first.stdout
    assert "nothing to push" in second.stderr and "pushing" not in second.stderr
    assert {r.method for r in hub.requests} == {"GET"}
    assert (document["created"], document["changed"]) == (False, False)


def test_of_a_repository_that_exists_the_rest_stays_and_is_named(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    files = {**content(run / "best"), "README.md": b"# Old\n", "notes.md": b"theirs"}
    repository = hub.add(NAME, files)
    old = repository.refs["main"]

    result = somebody.run("push", run, NAME, "--json")

    assert result.exit_code == 0, result.stderr
    assert (
        f"to {hub.url}/{NAME}, a public repository, as a commit after {old.sha[:7]}, replacing "
        "README.md, keeping config.json, model.safetensors, notes.md, preprocessor_config.json\n"
    ) in result.stderr
    assert "pushing README.md (" in result.stderr
    assert not hub.sent("PUT", "/store/")
    assert held(hub) == {**content(run / "best"), "notes.md": b"theirs"}
    assert repository.commit(old.sha).files["README.md"] == b"# Old\n"
    assert (result.json["created"], result.json["changed"]) == (False, True)


def test_what_somebody_commits_at_the_same_time_is_not_overwritten(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    hub.add(NAME, {"README.md": b"# Old\n"}, raced=True)

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 1
    assert f"somebody else changed `{NAME}` in the meantime (412: A commit has happened since" in (
        result.stderr
    )
    assert held(hub) == {"README.md": b"# Old\n", "notes.md": b"mine"}


def test_a_private_repository_is_seen_by_its_owner_alone(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    pushed = somebody.run("push", run, NAME, "--private")
    others = somebody.run("download", NAME, HF_TOKEN="reader")
    again = somebody.run("push", run / "last", NAME)

    assert pushed.exit_code == 0, pushed.stderr
    assert "a new repository, private\n" in pushed.stderr
    assert others.exit_code == 1
    assert "a private repository, as a commit after" in again.stderr
    assert somebody.run("download", NAME).exit_code == 0


def test_what_should_be_private_is_not_put_where_all_can_see_it(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    hub.add(NAME, {"README.md": b"# Old\n"})

    result = somebody.run("push", run, NAME, "--private")

    assert result.exit_code == 1
    assert f"`{NAME}` exists and is public" in result.stderr
    assert f"{hub.url}/{NAME}/settings" in result.stderr
    assert {r.method for r in hub.requests} == {"GET"}


# --- the model card


def test_a_missing_card_is_said_and_no_error(hub: Hub, somebody: Machine, run: Path) -> None:
    (run / "best" / "README.md").unlink()

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 0, result.stderr
    assert f"`{run / 'best'}` has no model card (`README.md`)" in result.stderr
    assert "README.md" not in held(hub)


def test_what_the_hub_thinks_of_a_card_is_passed_on(hub: Hub, somebody: Machine, run: Path) -> None:
    (run / "best" / "README.md").write_text("# Without a header\n")

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 0, result.stderr
    assert "README.md: - empty or missing yaml metadata\n" in result.stderr
    assert "Traceback" not in result.stderr and ".py" not in result.stderr


def test_a_card_that_the_hub_refuses_stops_the_push(hub: Hub, somebody: Machine, run: Path) -> None:
    (run / "best" / "README.md").write_text("---\ntags: [cvt\n---\n# Tiny\n")

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 1
    assert f"{hub.url} rejects the files: Invalid metadata in README.md." in result.stderr
    assert held(hub) == {}
    assert not hub.sent("PUT", "/store/")


# --- interrupted


def until_sending(hub: Hub, process: Started) -> None:
    while not hub.sent("PUT", "/store/"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"README.md": b"# Old\n"}, f"`{NAME}` is unchanged; run the same command to start again"),
        ({}, f"`{NAME}` may have been created, and is empty; run the same command to start"),
    ],
    ids=["there", "new"],
)
def test_ctrl_c_leaves_the_repository_as_it_was(
    hub: Hub, somebody: Machine, run: Path, before: dict[str, bytes], said: str
) -> None:
    hub.faults = {"bytes_per_sec": 200_000}
    if before:
        hub.add(NAME, before, **hub.faults)
    process = somebody.start("push", run, NAME)
    until_sending(hub, process)
    process.send_signal(signal.SIGINT)
    result = somebody.wait(process)

    assert result.exit_code == 130
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert said in result.stderr
    assert held(hub) == before
    hub.repositories[NAME].bytes_per_sec = None
    assert somebody.run("push", run, NAME).exit_code == 0
    assert held(hub) == content(run / "best")


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, somebody: Machine, run: Path) -> None:
    hub.add(NAME, {".gitattributes": b""}, cut_uploads=1)

    result = somebody.run("push", run, NAME)
    if result.exit_code:  # an older client does not try again by itself
        assert "no commit was made; run the same command again" in result.stderr
        result = somebody.run("push", run, NAME)

    assert result.exit_code == 0, result.stderr
    assert len(hub.sent("PUT", "/store/")) == 2
    assert "Retrying" not in result.stderr
    assert held(hub) == content(run / "best")


@pytest.mark.slow  # the client tries six times, longer and longer apart
def test_a_connection_that_keeps_breaking_is_an_error(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    hub.add(NAME, {"README.md": b"# Old\n"}, cut_uploads=100)

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 1
    assert f"the upload to `{NAME}` on {hub.url} was interrupted: " in result.stderr
    assert "no commit was made; run the same command again" in result.stderr
    assert held(hub) == {"README.md": b"# Old\n"}


# --- refused by the hub


@pytest.mark.parametrize(
    ("token", "message", "hint"),
    [
        (None, "no token for {url}", "run `hf auth login` or set HF_TOKEN"),
        ("expired", "{url} rejects the token (401: Invalid cred", "{url}/settings/tokens"),
        (
            "reader",
            f"this token may not write to `{NAME}` on {{url}} (403: This token has no write",
            "`somebody` must be the token's account, or an organisation",
        ),
    ],
)
@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
def test_without_the_right_to_write_the_error_says_what_to_do(
    hub: Hub, machine: Machine, run: Path, token: str | None, message: str, hint: str, there: bool
) -> None:
    if there:
        hub.add(NAME, {"README.md": b"# Old\n"})

    environment = {} if token is None else {"HF_TOKEN": token}
    result = machine.run("push", run, NAME, **environment)

    assert result.exit_code == 1
    assert message.format(url=hub.url) in result.stderr
    assert hint.format(url=hub.url) in result.stderr
    assert "Traceback" not in result.stderr
    assert not hub.sent("PUT", "/store/") and not hub.sent("POST", "/commit/")


def test_another_accounts_name_is_refused(hub: Hub, somebody: Machine, run: Path) -> None:
    result = somebody.run("push", run, "another/tiny")

    assert result.exit_code == 1
    assert "this token may not write to `another/tiny`" in result.stderr
    assert "(403: You don't have the rights to create a model" in result.stderr
    assert "another/tiny" not in hub.repositories


def test_a_hub_that_fails_is_reported_with_its_status(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    hub.add(NAME, {}, status=500)

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 1
    assert f"{hub.url} refuses the upload to `{NAME}` (500" in result.stderr
    assert "run the same command again later" in result.stderr


# --- no hub


def test_where_the_hub_is_not_to_be_asked_nothing_is_pushed(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    result = somebody.run("push", run, NAME, HF_HUB_OFFLINE="1")

    assert result.exit_code == 1
    assert f"`{NAME}` was not pushed to {hub.url}: HF_HUB_OFFLINE is set" in result.stderr
    assert hub.requests == []


def test_without_network_the_error_says_where_it_asked(
    hub: Hub, somebody: Machine, run: Path
) -> None:
    hub.stop()

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 1
    assert f"the hub {hub.url} cannot be reached" in result.stderr
    assert "nothing was sent" in result.stderr


def test_the_sign_in_page_of_a_network_is_no_hub(hub: Hub, somebody: Machine, run: Path) -> None:
    hub.add(NAME, {}, html=True)

    result = somebody.run("push", run, NAME)

    assert result.exit_code == 1
    assert f"the hub {hub.url} cannot be reached" in result.stderr


def test_a_hub_that_does_not_answer_is_given_up_within_three_seconds(
    somebody: Machine, run: Path
) -> None:
    with SilentHub() as silent:
        result = somebody.run("push", run, NAME, HF_ENDPOINT=silent.url)

    assert result.exit_code == 1
    assert f"the hub {silent.url} did not answer within 3 s" in result.stderr
    assert 2.5 < silent.waited_sec < 4.5


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the client's own
@pytest.mark.parametrize("where", ["preupload", "store", "commit"])
def test_a_hub_whose_answers_come_byte_by_byte_is_given_up(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "TOKEN")
    monkeypatch.setattr(upload, "SILENT_SEC", 1.0)
    repository = hub.add(NAME, {"README.md": b"# Old\n"}, answers_drip=where)

    with pytest.raises(CheckpointError, match="was interrupted: did not answer within 1 s"):
        upload.push(run, NAME, say=lambda message: None, progress=silent)

    assert held(hub) == {"README.md": b"# Old\n"}
    repository.answers_drip = ""


# --- refused here, before anybody is asked


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tiny", "it is not owner/name"),
        ("https://huggingface.co/somebody/tiny", "Repo id must be in the form"),
        ("somebody/-tiny", "Repo id must use alphanumeric"),
        ("somebody/ti ny", "Repo id must use alphanumeric"),
        ("some--body/tiny", "Cannot have -- or .."),
        ("somebody/tiny.git", "cannot end by '.git'"),
    ],
)
def test_what_cannot_be_a_repository_is_a_usage_error(cvt, run: Path, name: str, why: str) -> None:
    result: Result = cvt("push", run, name)

    assert result.exit_code == 2
    assert f"`{name}` is not a valid repository name: " in result.stderr
    assert why in result.stderr
    assert "such as `user/my-cvt`" in result.stderr


def without(name: str) -> Callable[[Path], None]:
    return lambda best: (best / name).unlink()


def cut_short(best: Path) -> None:
    path = best / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def with_a_tail(best: Path) -> None:
    with (best / "model.safetensors").open("ab") as file:
        file.write(bytes(100))


def pickled(best: Path) -> None:
    (best / "model.safetensors").rename(best / "pytorch_model.bin")


def another_config(best: Path) -> None:
    config = json.loads((best / "config.json").read_text())
    config["depth"][-1] += 1
    (best / "config.json").write_text(json.dumps(config))


def renamed(best: Path) -> None:
    tensors = load_file(best / "model.safetensors")
    save_file({to_reference(n): t for n, t in tensors.items()}, best / "model.safetensors")


def reshaped(best: Path) -> None:
    tensors = load_file(best / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"].T.contiguous()
    save_file(tensors, best / "model.safetensors")


def in_integers(best: Path) -> None:
    tensors = load_file(best / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"].to(torch.int8)
    save_file(tensors, best / "model.safetensors")


def marked(best: Path) -> None:
    (best / "config.json").write_bytes(b"\xef\xbb\xbf" + (best / "config.json").read_bytes())


def another_type(best: Path) -> None:
    (best / "config.json").write_text('{"model_type": "vit"}')


def latin1(best: Path) -> None:
    (best / "README.md").write_bytes("# Vögel\n".encode("latin-1"))


def no_best(best: Path) -> None:
    shutil.rmtree(best)


def no_run(best: Path) -> None:
    shutil.rmtree(best.parent)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_run, "`{run}` does not exist\n\nhint: name a run folder"),
        (no_best, "`{run}` is neither a checkpoint folder nor a run with a finished epoch"),
        (no_best, "hint: `{run}/last` is a checkpoint and can be pushed by its name"),
        (
            without("config.json"),
            "it has no `config.json` and no `best/config.json`; it holds b",
        ),
        (without("model.safetensors"), "`{run}/best` has no `model.safetensors`\n\nhint: the wei"),
        (
            pickled,
            "no `model.safetensors`, but a `pytorch_model.bin`, which is a pickle",
        ),
        (without("preprocessor_config.json"), "`{run}/best` has no `preprocessor_config.json`"),
        (cut_short, "`{run}/best/model.safetensors` is cut short"),
        (with_a_tail, "its tensors do not fill it without gaps"),
        (
            another_config,
            "`{run}/best/model.safetensors` does not match the `config.json` beside it",
        ),
        (renamed, "of its tensors differ: missing `cvt.encoder.stages.0.embedding."),
        (renamed, "names; to write those of transformers: `cvt export {run}/best --format"),
        (reshaped, "1 of its tensors differ: `classifier.weight` has shape [64, 10], not [10, 64]"),
        (in_integers, "1 of its tensors differ: `classifier.weight` holds no plain floating-"),
        (marked, "`{run}/best/config.json` begins with a byte order mark, which transformers does"),
        (another_type, "describes a model of type 'vit'"),
        (latin1, "`{run}/best/README.md` is not in UTF-8"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(
    cvt, run: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(run / "best")

    result: Result = cvt("push", run, NAME)

    assert result.exit_code == 1
    assert message.format(run=run) in result.stderr


def test_whoever_confuses_the_order_is_told_it(cvt, run: Path) -> None:
    result: Result = cvt("push", NAME, "somebody/run")

    assert result.exit_code == 1
    assert f"`{NAME}` does not exist" in result.stderr
    assert "`cvt push RUN user/name`" in result.stderr
