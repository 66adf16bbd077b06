"""README, docs and CHANGELOG are true: lines run, outputs are printed, links lead somewhere."""

import http.client
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import cvt_cli
import doc_pages
import option_tables
from cvt_cli.cli import app
from doc_pages import PAGES, ROOT, alike, blocks, kind, lines, sandbox, without_blocks

COMMAND_PAGES = sorted((ROOT / "docs" / "commands").glob("*.md"))
LINES = [line for page in PAGES for line in lines(page)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def parse(words: tuple[str, ...]) -> None:
    """Parse a command line without running it; raises what the command would end with."""
    command: Any = get_command(app)
    context = command.make_context("cvt", list(words))
    while hasattr(command, "commands"):
        name, command, left = command.resolve_command(context, [*context._protected_args,
                                                                *context.args])  # fmt: skip
        context = command.make_context(name, list(left), parent=context)


@pytest.mark.parametrize("line", LINES, ids=str)
def test_every_command_line_shown_can_be_parsed(line: doc_pages.Line) -> None:
    parse(line.words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_shown_run_and_print_what_is_shown(
    page: Path, cvt, tmp_path: Path, monkeypatch
) -> None:
    places = sandbox(tmp_path)

    for line in lines(page):
        if kind(line) != "run":
            continue
        monkeypatch.chdir(places.of(line))
        result = cvt(*line.words)
        assert result.exit_code == 0, f"{line}\n{result.stderr}"
        if line.place[1]:
            assert alike(line.shown, result.stdout), (
                f"{line} prints otherwise than {name_of(page)} shows:\n{result.stdout}\n"
                "`python tests/scripts/shown_outputs.py` renews it"
            )


def test_every_line_that_is_shown_as_typed_has_its_output() -> None:
    without = [str(line) for line in LINES if line.place[1] and not line.shown.strip()]

    assert without == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_long_command_lines_shown_run(page: Path, cvt_process, tmp_path: Path, monkeypatch) -> None:
    places = sandbox(tmp_path)

    for line in lines(page):
        monkeypatch.chdir(places.of(line))
        if line.words[0] == "finetune" and "--output" in line.words:
            shutil.rmtree(line.words[line.words.index("--output") + 1], ignore_errors=True)
        if kind(line) == "slow" or (kind(line) == "run" and not line.place[1]):
            result = cvt_process(*line.words)
            assert result.exit_code == 0, f"{line}\n{result.stderr}"


@pytest.mark.parametrize("pattern", [*doc_pages.PARSED_ONLY, *doc_pages.SLOW])
def test_every_exception_is_of_a_line_that_is_there(pattern: str) -> None:
    assert any(re.search(pattern, str(line)) for line in LINES)


def test_commands_in_the_text_exist_with_their_options() -> None:
    commands = option_tables.commands()
    groups = {name.split()[0] for name in commands if " " in name}
    for page in PAGES:
        for text in re.findall(r"`cvt ([^`]+)`", without_blocks(page)):
            if page.name == "coming-from.md" or text.startswith(("--", "COMMAND")):
                continue
            words = text.replace("\\|", "|").split()
            name = " ".join(words[:2] if words[0] in groups else words[:1])
            if name in groups:  # of the group as such
                continue
            assert name in commands, f"{name_of(page)}: cvt {text}"
            names = {n for p in commands[name].params for n in (*p.opts, *p.secondary_opts)}
            given = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
            assert given <= names | {"--help"}, f"{name_of(page)}: cvt {text}"


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=name_of)
def test_option_tables_are_those_of_the_app(page: Path) -> None:
    text = page.read_text()
    assert text == option_tables.renewed(text, page.stem), (
        f"the options of {name_of(page)} are stale: `python tests/scripts/option_tables.py` renews "
        "them"
    )


def test_the_readme_is_short_and_leads_to_the_docs() -> None:
    text = (ROOT / "README.md").read_text()

    assert len(text.splitlines()) <= 250
    assert all(f"](docs/{page}" in text for page in ("README.md", "models.md", "python.md"))
    assert re.search(r"^pip install '\.\[test\]' && pytest$", text, re.MULTILINE)  # CI runs it


def test_pages_and_package_tell_the_same(cvt) -> None:
    assert cvt("--version").stdout == f"cvt {cvt_cli.__version__}\n"
    card = (ROOT / "cvt_cli" / "data" / "cvt-nano-cifar10" / "README.md").read_text()
    command = re.search(r"^\| command \| `(cvt finetune .+)` \|$", card, re.MULTILINE)[1]
    page = (ROOT / "docs" / "commands" / "finetune.md").read_text()
    assert command in page.replace(" \\\n    ", " ")
    top1 = re.search(r"^\| top-1 \| (.+ %) \((\d+) of 10000; ", card, re.M)
    for page in (ROOT / "README.md", ROOT / "docs" / "commands" / "evaluate.md"):
        assert f"top-1   {top1[1]}  ({top1[2]} of 10000;" in page.read_text()


def test_every_command_has_a_page_that_is_listed() -> None:
    wanted = {name.split()[0] for name in option_tables.commands()}

    assert {page.stem for page in COMMAND_PAGES} == wanted
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        if page.parts[-2] == "commands" or (page.parent.name == "docs" and page.stem != "README"):
            assert f"({page.relative_to(ROOT / 'docs')})" in index


JSON_OF = {
    "predict": "photos/chelsea.png --model cvt-nano-cifar10",
    "evaluate": "my_folder --model my_run --split val",
    "finetune": "--resume my_run",
    "flops": "--variant nano",
    "count-params": "--variant nano",
    "models": "",
    "info": "cvt-nano-cifar10",
}


@pytest.mark.parametrize("command", JSON_OF)
def test_every_json_key_is_on_the_page_of_its_command(
    command: str, cvt, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(sandbox(tmp_path).folder)
    page = (ROOT / "docs" / "commands" / f"{command}.md").read_text()
    part = page.partition("## JSON keys\n")[2].partition("\n## ")[0]

    found = cvt(command, *JSON_OF[command].split(), "--json").json

    keys = set(found[0] if isinstance(found, list) else found)
    assert keys <= set(re.findall(r"`(\w+)`", part))


# --- links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading).lower())
        anchor = text.strip().replace(" ", "-")
        found.append(anchor if anchor not in found else f"{anchor}-{found.count(anchor)}")
    return set(found)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "`", without_blocks(page))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in found:
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


# --- what other tools' users type, Python, the service


def test_lines_of_other_tools_are_answered_as_the_page_says(cvt) -> None:
    page = (ROOT / "docs" / "coming-from.md").read_text()
    table = page.partition("## Whole command lines\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `cvt (.+?)` \| `(cvt .+?)` \|$", table, re.MULTILINE)
    assert len(rows) >= 6

    for theirs, ours in rows:
        result = cvt(*shlex.split(theirs))
        assert result.exit_code == 2, theirs
        assert ours in result.stderr, (theirs, result.stderr)


def python_of(page: Path, slow: bool) -> str:
    """The blocks that run as they stand: not the service, runtimes alone, Ray and Spark."""
    elsewhere = ("serve_forever", "import onnxruntime", "import openvino", "ray.data")
    return "\n".join(
        text
        for text, _ in blocks(page, "python")
        if not any(word in text for word in elsewhere) and ("import finetune" in text) == slow
    )


def run_python(code: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if python_of(p, slow=False)], ids=name_of)
def test_python_shown_runs(page: Path, tmp_path: Path) -> None:
    run_python(python_of(page, slow=False), sandbox(tmp_path).folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if python_of(p, slow=True)], ids=name_of)
def test_python_shown_trains(page: Path, tmp_path: Path) -> None:
    run_python(python_of(page, slow=True), sandbox(tmp_path).folder)


def test_python_shown_can_be_compiled() -> None:
    for page in PAGES:
        for text, _ in blocks(page, "python"):
            compile(text, name_of(page), "exec")


def test_the_service_shown_answers(tmp_path: Path) -> None:
    (code,) = (
        text for text, _ in blocks(ROOT / "docs" / "deployment.md", "python") if "do_POST" in text
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "service.py").write_text(code.replace("8000", str(port)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "service.py"], cwd=tmp_path, env=environment) as service:
        try:
            photo = (ROOT / "tests" / "photos" / "nagasaki-boats.jpg").read_bytes()
            status, answer = ask(port, photo)
            refused, _ = ask(port, b"no picture")
        finally:
            service.kill()

    assert (status, answer["predictions"][0]["label"]) == (200, "ship")
    assert refused == 400


def ask(port: int, image: bytes) -> tuple[int, Any]:
    """Send an image to the service as soon as it listens."""
    for _ in range(600):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.request("POST", "/", image)
        except ConnectionRefusedError:
            time.sleep(0.1)
            continue
        reply = connection.getresponse()
        return reply.status, json.load(reply)
    raise AssertionError("nobody listens")


def test_what_is_cited_is_this_version() -> None:
    import yaml

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    assert {"cff-version", "title", "message", "authors"} <= cited.keys()
    assert cited["version"] == cvt_cli.__version__
    (paper,) = cited["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2103.15808" and len(paper["authors"]) == 7
