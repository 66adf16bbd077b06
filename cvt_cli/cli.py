"""The app: which commands there are, and the one place where errors become messages."""

import io
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cvt_cli import __version__, output
from cvt_cli.commands import (
    benchmark,
    cache,
    count_params,
    download,
    evaluate,
    finetune,
    flops,
    info,
    models,
    predict,
)
from cvt_cli.errors import CvtError


class _App(TyperGroup):
    """Turns what a user can act on into a message and an exit code; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        # Pillow warns of odd but readable files; what cannot be read is reported by name.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that its encoding lacks is escaped
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except CvtError as error:
            output.error(str(error), error.hint)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_App,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"cvt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Classify images with CvT, the Convolutional vision Transformer (arXiv 2103.15808).

    Example: cvt predict photo.jpg
    """


app.command(name="predict")(predict.predict)
app.command(name="evaluate")(evaluate.evaluate)
app.command(name="finetune")(finetune.finetune)
app.command(name="flops")(flops.flops)
app.command(name="count-params")(count_params.count_params)
app.command(name="benchmark")(benchmark.benchmark)
app.command(name="models")(models.models)
app.command(name="info")(info.info)
app.command(name="download")(download.download)
app.add_typer(cache.app, name="cache")
