"""``cvt cache``: what is kept on this machine."""

import os
from collections.abc import Iterable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.base import files, places
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.text import human_bytes
from cvt_cli.commands import completion, help_pages, options, output

if TYPE_CHECKING:
    from cvt_cli.checkpoints.cache import Prepared

app = typer.Typer(
    cls=help_pages.Group,
    no_args_is_help=True,
    help="""Show, verify and clear the downloaded models.

Examples:
  cvt cache list
  cvt cache remove cvt-13

See also: cvt download (download models), cvt models (known models)""",
)

Names = Annotated[
    list[str] | None,
    typer.Argument(
        parser=options.text,
        metavar="[NAME...]",
        autocompletion=completion.models,
        help="Known names (cvt models), hub repositories (owner/name), or runs and checkpoints.",
    ),
]


def _parted(
    names: Iterable[str], prepared: "Sequence[Prepared]"
) -> "tuple[list[Prepared], list[str]]":
    """Those of one's own models that names mean, by what `cvt cache list` calls them; the rest.

    Of a run's folder its best epoch is meant.
    """
    from cvt_cli.checkpoints import folders

    listed = {os.path.normpath(one.name) for one in prepared}
    own: set[str] = set()
    rest = []
    for name in names:
        best = os.path.join(name, folders.BEST)
        told = [os.path.normpath(one) for one in (name, best)]
        if found := next((one for one in told if one in listed), None):
            own.add(found)
        else:
            rest.append(best if folders.best_of(Path(places.expanded(name))) else name)
    return [one for one in prepared if os.path.normpath(one.name) in own], rest


@app.command(name="list", cls=help_pages.Command)
def list_(json_output: options.Json = False) -> None:
    """List the downloaded models with size and last use, and what was prepared of your own.

    Includes every CvT in the Hugging Face cache, also those that other tools downloaded.

    Examples:
      cvt cache list
    """
    from cvt_cli.checkpoints import cache
    from cvt_cli.commands import catalogue

    rows, own = catalogue.held([]), cache.prepared()
    if json_output:
        output.print_json([row.to_json() for row in rows] + [one.to_json() for one in own])
        return
    if own:
        output.print_table(
            f"Prepared in {places.graphs_dir()} for models that are elsewhere",
            ("name", "last use", "size"),
            [
                (
                    one.name,
                    str(date.fromtimestamp(one.last_use)) if one.last_use else "not known",
                    human_bytes(one.bytes),
                )
                for one in own
            ],
            text_columns=2,
        )
    if not rows:
        output.note(f"no CvT in `{places.hub_dir()}`; `cvt download NAME` downloads one")
        return
    output.print_table(
        f"CvT checkpoints in {places.hub_dir()}",
        ("name", "revision", "state", "last use", "size", "made of it"),
        [
            (
                row.name,
                ", ".join((*row.snapshot.refs, row.snapshot.commit[:7])),
                "whole" if not row.snapshot.missing else f"no {' or '.join(row.snapshot.missing)}",
                (row.to_json()["last_use"] or "never")[:10],
                human_bytes(row.bytes),
                human_bytes(row.made_bytes) if row.made_bytes else "",
            )
            for row in rows
        ],
        text_columns=4,
    )


@app.command(cls=help_pages.Command)
def path(names: Names = None, json_output: options.Json = False) -> None:
    """Print the cache folders, or one model's folder; of your own models that of their graphs.

    `hub` is the Hugging Face cache with the downloads, `cvt` holds converted and prepared files.

    Examples:
      cvt cache path
      cvt cache path cvt-13
    """
    from cvt_cli.checkpoints import cache
    from cvt_cli.commands import catalogue

    if names:
        prepared = sorted(cache.prepared(), key=lambda one: one.last_use)
        folders: dict[str, str] = {}
        for name in names:
            own, of_hub = _parted([name], prepared)
            folders |= {one.name: str(one.folder) for one in own}
            folders |= {known: str(one.folder) for known, one in catalogue.meant(of_hub).items()}
    else:
        found = {"hub": places.hub_dir(), "cvt": places.cache_dir()}
        if files.NOWHERE in found.values():
            raise files.unwritable(files.NOWHERE, OSError())
        folders = {name: str(place) for name, place in found.items()}
    if json_output:
        output.print_json(folders)
        return
    for name, place in folders.items():
        output.emit(place if names else f"{name}  {place}")


@app.command(cls=help_pages.Command)
def verify(names: Names = None, json_output: options.Json = False) -> None:
    """Check every cached file against its SHA-256 hash.

    Damaged downloads are not used until cvt download NAME has replaced them. Damaged converted or
    prepared files are removed, and made again when needed. Without names, checks everything.

    Examples:
      cvt cache verify
      cvt cache verify cvt-13
    """
    from cvt_cli.checkpoints import cache
    from cvt_cli.commands import catalogue

    verdicts = {True: "right", False: "damaged", None: "no hash known"}
    own, of_hub = _parted(names or (), cache.prepared() if names else [])
    rows = catalogue.held(of_hub) if of_hub or not names else []
    checks: list[tuple[str, Path, bool | None]] = []
    refused = []
    for row in rows:
        try:
            checks += [(row.name, file, right) for file, right in cache.verify(row.snapshot)]
        except CvtError as error:
            refused.append(error)
    checks += [check for made in own for check in cache.verify_graphs(made.folder)]
    fetched = {path: row.as_fetched for row in rows for path in row.snapshot.used}
    seen = {file for _, file, _ in checks}
    if not names:
        checks += [
            check for check in cache.verify_graphs(places.graphs_dir()) if check[1] not in seen
        ]
    if json_output:
        output.print_json(
            [{"name": name, "path": str(file), "right": right} for name, file, right in checks]
        )
    else:
        output.print_table(
            "Files compared with their hashes",
            ("name", "file", "verdict"),
            [(name, file.name, verdicts[right]) for name, file, right in checks],
            text_columns=3,
        )
    damaged = [(name, file) for name, file, right in checks if right is False]
    for _, file in damaged:
        hint = "cvt does not use it; the tool that downloaded it may replace it"
        if file in fetched:
            hint = f"`cvt download {fetched[file]}` replaces it"
        elif file.is_relative_to(places.cache_dir()):
            hint = "it was removed, and is made again when it is needed"
        output.error(f"`{file}` is damaged", hint)
    for one in refused:
        output.error(str(one), one.hint)
    if damaged or refused:
        raise typer.Exit(1)


@app.command(cls=help_pages.Command)
def remove(
    names: Names = None,
    everything: Annotated[
        bool,
        options.flag(
            "Remove every CvT in the cache, and all that was prepared; other models stay.",
            options.MODEL,
            "--all",
        ),
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Remove models from the cache, in every revision, or what was prepared of your own models.

    Other tools that use the Hugging Face cache will not find them either. Running processes are
    not affected.

    Examples:
      cvt cache remove cvt-13
      cvt cache remove runs/my_run
      cvt cache remove --all
    """
    from cvt_cli.checkpoints import cache
    from cvt_cli.commands import catalogue

    if bool(names) == everything:
        raise UsageError("name models, or use --all")
    prepared = cache.prepared()
    own, of_hub = _parted(names or (), prepared)
    repositories = {catalogue.repository_of(name) for name in of_hub}
    if everything:
        own = prepared
        repositories = {row.snapshot.repository for row in catalogue.held([])}
    removals = [(one.name, partial(cache.remove_prepared, one)) for one in own]
    removals += [(name, partial(cache.remove, name)) for name in sorted(repositories)]
    freed: dict[str, int] = {}
    failed = 0
    for name, remove_it in removals:
        try:
            freed[name] = freed.get(name, 0) + remove_it()
        except CvtError as error:
            failed += 1
            output.error(str(error), error.hint)
    if json_output:
        output.print_json({name: {"freed_bytes": size} for name, size in freed.items()})
    else:
        for name, size in freed.items():
            output.emit(f"removed {name}, {human_bytes(size)}")
    if failed:
        raise typer.Exit(1)
