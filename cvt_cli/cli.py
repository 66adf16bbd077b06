"""The app: which commands there are, and the one place where errors become messages."""

import copy
import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from cvt_cli.base import files, machine, streams
from cvt_cli.base.errors import CvtError, UsageError, is_of_memory, of_a_library
from cvt_cli.base.package import __version__
from cvt_cli.commands import (
    benchmark,
    cache,
    card,
    compare,
    count_params,
    download,
    evaluate,
    explain,
    export,
    finetune,
    flops,
    help_pages,
    info,
    models,
    options,
    output,
    predict,
    push,
)

_OF_THE_MACHINE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
    errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ESTALE, errno.ENOMEM,
)  # fmt: skip
"""What a system says of files, disks and rights, wherever it says so: no bug of ours."""


_WrongUsage: Any = typer.BadParameter.__base__
"""What typer raises of a command line that it cannot parse; it exports this subclass alone."""


def _refuse_nowhere() -> None:
    """Raises CvtError if the folder that this was started in is gone: no path leads from there."""
    try:
        os.getcwd()
    except OSError as error:
        raise CvtError(
            f"the current folder cannot be used: {error.strerror}",
            hint="it was deleted or moved; change to one that exists, with `cd`",
        ) from None


def _refuse_odd_timeouts() -> None:
    """Raises CvtError for what huggingface_hub would end with a traceback when it is imported."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        value = os.environ.get(name, "")
        if value and not value.isdecimal():
            raise CvtError(
                f"the environment variable {name} is `{value}`; accepted is a whole number of "
                "seconds",
                hint=f"set it to one, or `unset {name}`",
            )


class _App(help_pages.Group):
    """Turns what a user can act on into a message and an exit code; bugs keep their traceback."""

    _words: Sequence[str] = ()  # what follows `cvt`

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # Pillow warns of odd but readable files; what cannot be read is reported by name.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        # Of kernels of depth 1, whose strides can be told in two ways; nothing is slower for it.
        warnings.filterwarnings("ignore", message="Grad strides do not match")
        machine.wait_briefly()
        try:
            with streams.prepared():
                return super().main(*args, **kwargs)
        except CvtError as error:
            output.error(str(error), error.hint)
            raise SystemExit(error.exit_code) from None
        except streams.Unread:
            raise SystemExit(1) from None
        except Exception as error:
            if (told := self._explained(error)) is None:
                raise
            output.error(str(told), told.hint)
            raise SystemExit(1) from None

    def _explained(self, error: Exception) -> CvtError | None:
        """What to say of an error that is of the machine; None of a bug of ours."""
        if told := files.no_temporary_folder(error) or of_a_library(error):
            return told
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            place = "" if error.filename is None else f"`{os.fsdecode(error.filename)}`: "
            return CvtError(f"{place}{error.strerror}")
        if is_of_memory(error) and not isinstance(error, OSError):
            return CvtError("not enough memory", self._what_takes_less())
        return None

    def _what_takes_less(self) -> str | None:
        """What the command that was given can be told to need less memory."""
        command = self.commands.get(next(iter(self._words), ""))
        there = {option for one in command.params for option in one.opts} if command else set()
        if "--accumulate" not in there:
            less = " or ".join(name for name in ("--batch-size", "--res") if name in there)
            return f"a smaller {less} takes less" if less else None
        if any(word.startswith("--resume") for word in self._words):
            return "the run's batches are settled; free some, or start another with smaller ones"
        return (
            "a smaller --batch-size or --res takes less; --accumulate computes the images of a "
            "step in parts, --checkpoint-activations keeps less of each block"
        )

    def make_context(self, info_name: Any, args: Any, *others: Any, **extra: Any) -> Any:
        self._words = list(args)
        with self._habits():
            return super().make_context(info_name, args, *others, **extra)

    def invoke(self, ctx: Any) -> Any:
        _refuse_nowhere()
        _refuse_odd_timeouts()
        try:
            with self._habits():
                return super().invoke(ctx)
        except streams.Unread:
            raise
        except BrokenPipeError as error:  # not of stdout; click would end without a word
            raise CvtError("what this command wrote to was closed by who read it") from error
        except KeyboardInterrupt:
            # One more Ctrl-C while the process ends is no reason for a traceback.
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, lambda number, frame: None)
            raise

    @contextmanager
    def _habits(self) -> Iterator[None]:
        """Wrong usage is one message and a hint; what other tools take, and this one does not, is
        answered with what is right here."""
        try:
            yield
        except (_WrongUsage, UsageError) as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed by now
                output.emit("")
                raise typer.Exit(2) from None
            from cvt_cli.commands import habits

            ours = error if isinstance(error, UsageError) else _as_ours(error)
            raise habits.explain(typer.main.get_command(app), self._words) or ours from None


def _as_ours(error: Any) -> UsageError:
    """Wrong usage that typer found, as ours is reported: the message in one piece, and a hint."""
    path = error.ctx.command_path if error.ctx else "cvt"
    message = error.format_message().replace("Value error, ", "")
    found: list[Any] = getattr(
        error.__cause__, "errors", list
    )()  # of pydantic, which newer typers ask
    if found and isinstance(found[0].get("input"), str):
        message = message.replace("Input should", f"`{found[0]['input']}` should")
        message = message.replace(", unable to parse string as an integer", "")
        message = message.replace(", unable to parse string as a number", "")
    return UsageError(message, f"`{path} --help` lists its options")


class _Cvt(typer.Typer):
    """An app that makes the options of the command alone that it is started with."""

    def for_words(self, words: Sequence[str]) -> typer.Typer:
        """The app as far as these words after ``cvt`` need it: with one command, or whole."""
        asked = [one for one in self.registered_commands if [one.name] == list(words[:1])]
        if not asked:
            return self
        found = copy.copy(self)
        found.registered_commands, found.registered_groups = asked, []
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from_shell = not args and "args" not in kwargs
        return typer.Typer.__call__(
            self.for_words(sys.argv[1:]) if from_shell else self, *args, **kwargs
        )


app = _Cvt(
    cls=_App,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        output.emit(f"cvt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Classify images with CvT, the Convolutional vision Transformer (arXiv 2103.15808).

    Results go to stdout, messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
    interrupted.

    Examples:
      cvt predict photo.jpg
      cvt finetune --help
    """


COMMANDS = {
    "Use": (predict.predict, evaluate.evaluate, explain.explain, compare.compare),
    "Train": (finetune.finetune,),
    "Ship": (export.export, benchmark.benchmark, card.card, push.push),
    "Look up": (models.models, info.info, download.download, flops.flops,
                count_params.count_params),
}  # fmt: skip
"""The commands by the section of the help that lists them."""

for _title, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(
            cls=options.Command,
            name=_command.__name__.replace("_", "-"),
            help=help_pages.cleaned(_command.__doc__),
            rich_help_panel=_title,
        )(_command)
app.add_typer(cache.app, name="cache", rich_help_panel="Look up")
