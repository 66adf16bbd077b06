"""``cvt card``: everything that is known of a model, in one document."""

import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.base import files, text
from cvt_cli.base.errors import CheckpointError, DataError, UsageError
from cvt_cli.commands import completion, options, output

if TYPE_CHECKING:
    from cvt_cli.cards.about import About
    from cvt_cli.checkpoints.locate import Access

Written = Annotated[
    str | None,
    typer.Argument(
        parser=options.place,
        metavar="[MODEL]",
        autocompletion=completion.models,
        help="Run folder, checkpoint folder, model name, file or hub repository.",
    ),
]
Add = Annotated[
    list[Path] | None,
    options.path_option(
        "FILE",
        "Add results: JSON written by cvt evaluate, cvt benchmark or cvt export. Repeatable.",
        options.DATA,
    ),
]
Check = Annotated[
    Path | None,
    options.path_option(
        "FILE", "Instead, list what an existing model card lacks; exit code 1 if it does.",
        options.DATA,
    ),
]  # fmt: skip
Output = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Write the card to this file. [default: README.md in the folder; of a model without one, "
        "stdout]",
        options.OUTPUT,
        "--output",
        "-o",
    ),
]
Overwrite = Annotated[
    bool,
    options.flag(
        "Replace a card or file that cvt card did not write, and results of other images.",
        options.OUTPUT,
        "--overwrite",
    ),
]


def card(
    ctx: typer.Context,
    model: Written = None,
    add: Add = None,
    check: Check = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    file: Output = None,
    overwrite: Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Write the model card of a run, a checkpoint or a published model.

    The card holds what was measured, with its conditions; what was not measured is one line that
    names the command. Text that you edit in a card is kept when it is written again.

    Examples:
      cvt card runs/my_run --add results.json
      cvt card cvt-21-384-22k
      cvt card --check README.md

    See also: cvt evaluate --card, cvt benchmark --card (add results), cvt push (upload)
    """
    if check is not None:
        options.refuse_all_but(ctx, ("--check", "--json"), "it has no effect with --check")
        _check(check, json_output)
        return
    if model is None:
        raise UsageError(
            "no model to write a card of",
            hint="name a run, a checkpoint folder or a model: cvt card cvt-13",
        )
    from cvt_cli.cards import card as cards
    from cvt_cli.cards import gather, header, parts, record

    access = output.access(revision, offline)
    sources = [
        (f"`{path}`", document) for path in add or () for document in record.documents_in(path)
    ]
    folder, path = _folder(model, access), file
    if file is not None:
        files.refuse_overwriting([file], map(str, add or ()))
    with nullcontext() if folder is None else gather.alone(folder, output.note):
        about = gather.about_folder(folder) if folder else _about(model, access)
        about = gather.with_results(about, sources, output.note, overwrite=overwrite)
        if file is None and folder is not None:
            made = cards.save(folder, about, overwrite=overwrite)
            path = folder / "README.md"
        elif file is not None:
            made = cards.compose(about, _before(file, overwrite))
            files.refuse_unwritable(file)
            files.write_text(file, made.text)
        else:
            made = cards.compose(about)
            if overwrite:
                options.refuse(ctx, ["--overwrite"], "the card is printed, and no file is replaced")
    if path is not None:
        cards.say_changes(made, path, output.note)
    if json_output:
        output.print_json(
            {
                "path": path and str(path),
                "changed": list(made.changed),
                "kept": list(made.kept),
                "header": parts.header_of(made.text),
                "eval_results": header.entries(about),
                "card": made.text,
            }
        )
    elif path is None:
        output.emit(*made.text.rstrip("\n").split("\n"))
    else:
        output.emit(str(path))


def _folder(model: str, access: "Access") -> Path | None:
    """The folder of a name, which its card belongs into; None where it has none.

    Raises:
        UsageError: it is an exported graph, of which a checkpoint's card would say what is not so.
    """
    from cvt_cli.checkpoints.locate import Repository, find

    found = find(model, access)
    if not isinstance(found, Repository) and found.kind == "graph":
        raise UsageError(
            f"`{model}` is an exported graph, and a card is of a checkpoint",
            hint="give the checkpoint that it was exported from; --add FILE.json adds what the "
            "export measured, which is beside the graph",
        )
    return found.folder if not isinstance(found, Repository) and found.kind == "folder" else None


def _about(model: str, access: "Access") -> "About":
    """What the name of a model without a folder of its own means."""
    from cvt_cli.cards import about as abouts
    from cvt_cli.cards import record
    from cvt_cli.checkpoints.locate import Repository, find
    from cvt_cli.commands import catalogue

    found, said = find(model, access), catalogue.describe(model, access)
    if said.here is None:
        assert isinstance(found, Repository) and found.known is not None
        return abouts.About(
            said.name,
            said.described,
            known=found.known,
            repository=said.repository,
            revision=said.revision,
            license=said.license,
        )
    kept = record.Record()
    if said.here.kind == "embedded" and said.here.folder is not None:
        kept = record.read(said.here.folder)
    return abouts.of_checkpoint(said.here, said.described, kept)


def _before(file: Path, overwrite: bool) -> str | None:
    """The card in a file that is to be written; its edited text is kept."""
    from cvt_cli.cards import card as cards
    from cvt_cli.cards import parts

    if file.exists() and not file.is_file():  # a device or a pipe is written in place
        return None
    with suppress(CheckpointError):  # what is no text is none of ours
        found = cards.read(file)
        if found is None or parts.is_ours(found):
            return found
    files.refuse_replacing([file], overwrite)
    return None


def _check(file: Path, json_output: bool) -> None:
    from cvt_cli.cards import card as cards

    try:
        if str(file) == "-":
            content: str | None = text.decoded(sys.stdin.buffer.read())
        else:
            content = cards.read(file)
    except (OSError, ValueError) as error:
        raise DataError(f"stdin cannot be read: {error}") from None
    if content is None:
        raise DataError(f"`{file}` does not exist")
    found = cards.check(content)
    if json_output:
        output.print_json({"file": str(file), **found.to_json()})
    else:
        for name, lines in (
            ("lacks", found.lacks),
            ("not measured", found.not_measured),
            ("not stated", found.not_stated),
            ("edited by hand", found.edited),
        ):
            for line in lines:
                output.emit(f"{name:<15} {line}")
        output.note(
            f"{len(found.lacks)} lacking, {len(found.not_measured)} not measured, "
            f"{len(found.not_stated)} not stated"
        )
    if found.lacks:
        raise typer.Exit(1)
