"""``cvt push``: a checkpoint to the hub."""

from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.base import torchrun
from cvt_cli.commands import completion, options, output


def push(
    run: Annotated[
        Path,
        typer.Argument(
            parser=options.path,
            metavar="RUN",
            autocompletion=completion.runs,
            help="A run folder, of which the best epoch is uploaded, or a checkpoint folder.",
        ),
    ],
    repository: Annotated[
        str,
        typer.Argument(
            parser=options.text,
            metavar="USER/NAME",
            help="Hub repository; created if it does not exist.",
        ),
    ],
    private: Annotated[
        bool,
        options.flag("Create a private repository.", options.OUTPUT, "--private"),
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Upload a model to the Hugging Face hub.

    Checks weights, config, preprocessing and model card, then uploads them. An existing repository
    gets a new commit, and its other files stay. You need a token with write access: hf auth login,
    or HF_TOKEN.

    Examples:
      cvt push runs/my_run user/my-cvt
      cvt push runs/my_run user/my-cvt --private

    See also: cvt finetune (makes a run), cvt predict --model USER/NAME (use the model)
    """
    from cvt_cli.cards import gather
    from cvt_cli.checkpoints import upload

    torchrun.refuse("a push")
    upload.check_name(repository)
    gather.refuse_stale(run)
    pushed = upload.push(
        run, repository, private=private, say=output.note, progress=output.progress
    )
    if not pushed.changed:
        output.note("nothing to push: the hub has these files already; no commit was made")
    if json_output:
        output.print_json(pushed.to_json())
        return
    output.emit(pushed.url, f"commit {pushed.commit}")
    output.note(f"next: cvt predict photo.jpg --model {repository}")
