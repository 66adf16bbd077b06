"""``cvt push``: a checkpoint to the hub."""

from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.base import torchrun
from cvt_cli.commands import options, output


def push(
    run: Annotated[
        Path,
        typer.Argument(
            parser=options.path,
            metavar="RUN",
            help="A run folder, whose best epoch is taken, or a checkpoint folder.",
            show_default=False,
        ),
    ],
    repository: Annotated[
        str,
        typer.Argument(
            parser=options.text,
            metavar="USER/NAME",
            help="Hub repository; made if there is none.",
            show_default=False,
        ),
    ],
    private: Annotated[
        bool,
        typer.Option("--private", help="Make a repository that its owner alone can see."),
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Upload a checkpoint to the hub: weights, config, preprocessing and model card, no more.

    The checkpoint is checked first. In a repository that exists it becomes a new commit; other
    files stay. It needs a token with the right to write: `hf auth login`, or HF_TOKEN.

    Example: cvt push my_run user/my-cvt
    """
    from cvt_cli.checkpoints import upload

    torchrun.refuse("a push")
    pushed = upload.push(
        run, repository, private=private, say=output.note, progress=output.progress
    )
    if not pushed.changed:
        output.note("nothing has changed: the hub has these files already, and no commit was made")
    if json_output:
        output.print_json(pushed.to_json())
        return
    output.emit(f"{pushed.url}\ncommit {pushed.commit}")
    output.note(f"next: cvt predict photo.jpg --model {repository}")
