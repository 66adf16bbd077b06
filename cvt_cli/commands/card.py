"""``cvt card``: everything that is known of a model, in one document."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.base import files, text
from cvt_cli.base.errors import DataError, UsageError
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
    about, folder = _about(model, access)
    about = gather.with_results(about, sources, output.note, overwrite=overwrite)
    if file is None and folder is not None:
        made = cards.save(folder, about, overwrite=overwrite)
        path: Path | None = folder / "README.md"
        assert path is not None
        cards.say_changes(made, path, output.note)
    elif file is not None:
        path, made = file, cards.compose(about, _before(file, overwrite))
        files.refuse_unwritable(file)
        files.write_text(file, made.text)
        cards.say_changes(made, file, output.note)
    else:
        path, made = None, cards.compose(about)
        if overwrite:
            options.refuse(ctx, ["--overwrite"], "the card is printed, and no file is replaced")
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
        output.emit(made.text.rstrip("\n"))
    else:
        output.emit(str(path))


def _about(model: str, access: "Access") -> "tuple[About, Path | None]":
    """What a name means, and the folder that its card belongs into; None where it has none."""
    from cvt_cli.cards import about as abouts
    from cvt_cli.cards import gather, record
    from cvt_cli.checkpoints.locate import Repository, find
    from cvt_cli.commands import catalogue

    found = find(model, access)
    if not isinstance(found, Repository) and found.kind == "folder" and found.folder is not None:
        return gather.about_folder(found.folder), found.folder
    said = catalogue.describe(model, access)
    if said.here is None:
        assert isinstance(found, Repository) and found.known is not None
        about = abouts.About(
            said.name,
            said.described,
            known=found.known,
            repository=said.repository,
            revision=said.revision,
            license=said.license,
        )
        return about, None
    kept = record.Record()
    if said.here.kind == "embedded" and said.here.folder is not None:
        kept = record.read(said.here.folder)
    return abouts.of_checkpoint(said.here, said.described, kept), None


def _before(file: Path, overwrite: bool) -> str | None:
    """The card in a file that is to be written; its edited text is kept."""
    from cvt_cli.cards import parts

    try:
        found = text.read_text(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = ""
    if parts.is_ours(found):
        return found
    files.refuse_replacing([file], overwrite)
    return None


def _check(file: Path, json_output: bool) -> None:
    from cvt_cli.cards import card as cards

    try:
        content = sys.stdin.read() if str(file) == "-" else text.read_text(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"`{file}` cannot be read: {reason}") from None
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
