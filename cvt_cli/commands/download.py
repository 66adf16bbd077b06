"""``cvt download``: fetch checkpoints ahead."""

from typing import Annotated

import typer

from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import human_bytes
from cvt_cli.commands import options, output
from cvt_cli.spec.formats import Runtime
from cvt_cli.spec.published import CHECKPOINTS


def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            parser=options.text,
            metavar="NAME...",
            help="Known checkpoints, and hub repositories (owner/name).",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every published checkpoint (cvt models).")
    ] = False,
    revision: options.Revision = None,
    engine: Annotated[
        Runtime | None,
        typer.Option(
            help="Also prepare the graph that this runtime starts from, at the model's own size.",
            rich_help_panel=options.RUN,
            show_default=False,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Fetch checkpoints from the hub, verified and ready to be used without network.

    What is here already is verified, and fetched again if it is damaged or the hub has a newer
    revision. An interrupted download goes on where it stopped.

    Example: cvt download cvt-13 cvt-21-384-22k
    """
    from cvt_cli import loading
    from cvt_cli.checkpoints import locate
    from cvt_cli.commands import catalogue
    from cvt_cli.commands.catalogue import Held

    if bool(names) == everything:
        raise UsageError("give the names of checkpoints, or --all", hint="`cvt models` lists them")
    wanted = names or [c.name for c in CHECKPOINTS.values() if c.repository]
    here: list[Held] = []
    done = 0
    access = output.access(revision)
    for result in catalogue.download(wanted, access):
        done += 1
        if isinstance(result, Held):
            here.append(result)
            if engine:
                # Not by its name, which may be a folder's here.
                found = locate.fetched(result.snapshot)
                loading.load_classifier(found, None, None, "cpu", "auto", access, engine=engine)
        else:
            output.error(str(result), result.hint)
    if left := wanted[done:]:
        output.note(f"not tried: {', '.join(left)}")
    if json_output:
        output.print_json([row.to_json() for row in here])
    elif here:
        output.print_table(
            "On this machine, verified",
            ("name", "folder", "revision", "size"),
            [
                (
                    row.name,
                    str(row.snapshot.folder),
                    row.snapshot.commit[:7],
                    human_bytes(row.bytes + row.made_bytes),
                )
                for row in here
            ],
            text_columns=2,
        )
    if len(here) < len(wanted):
        raise typer.Exit(1)
