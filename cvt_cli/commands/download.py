"""``cvt download``: fetch checkpoints ahead."""

from typing import Annotated

import typer

from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.text import human_bytes
from cvt_cli.commands import completion, options, output
from cvt_cli.spec.formats import Runtime
from cvt_cli.spec.published import CHECKPOINTS


def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            parser=options.text,
            metavar="NAME...",
            autocompletion=completion.models,
            help="Known names (cvt models) or hub repositories (owner/name).",
        ),
    ] = None,
    everything: Annotated[
        bool, options.flag("Download every published model.", options.MODEL, "--all")
    ] = False,
    revision: options.Revision = None,
    engine: Annotated[
        Runtime | None,
        options.value_option(
            "NAME",
            f"Also prepare the model for this runtime: {options.either(Runtime)}.",
            options.MODEL,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Download models, so that they can be used without a network.

    Models that are already here are verified, and downloaded again if damaged or outdated. An
    interrupted download continues where it stopped.

    Examples:
      cvt download cvt-13 cvt-21-384-22k
      cvt download cvt-13 --engine openvino

    See also: cvt models (known names), cvt cache (what is on this machine)
    """
    from cvt_cli import loading
    from cvt_cli.checkpoints import locate
    from cvt_cli.commands import catalogue
    from cvt_cli.commands.catalogue import Held

    if bool(names) == everything:
        raise UsageError("name models, or use --all", hint="`cvt models` lists them")
    if engine:
        from cvt_cli.engines import runtimes

        runtimes.require(engine)  # not after gigabytes
    wanted = names or [c.name for c in CHECKPOINTS.values() if c.repository]
    here: list[Held] = []
    done = 0
    access = output.access(revision)
    for result in catalogue.download(wanted, access):
        done += 1
        try:
            if not isinstance(result, Held):
                raise result
            if engine:
                # Not by its name, which may be a folder's here.
                found = locate.fetched(result.snapshot)
                loading.load_classifier(found, None, None, "cpu", "auto", access, engine=engine)
            here.append(result)
        except CvtError as error:  # the others may be had
            output.error(str(error), error.hint)
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
