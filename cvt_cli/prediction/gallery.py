"""A page of thumbnails with their answers: one HTML file that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cvt_cli.prediction import pages
from cvt_cli.prediction.answers import UNKNOWN, Answer
from cvt_cli.prediction.whole import WholeFile

_CARDS = "<!-- cards -->\n"
"""Where the cards stand in the template; no text that is put into it can hold this unescaped."""


def around(model: str, describe: str) -> tuple[str, str]:
    """The page before its first card, and after its last.

    Args:
        model: its name.
        describe: tells the conditions in a line.
    """
    page = pages.template("gallery.html").render(title=model, conditions=describe)
    start, _, end = page.partition(_CARDS)
    return start, end


def card(answer: Answer) -> str:
    """One image with its classes, or why it could not be read."""
    told = [answer.path, answer.error or ""]
    named = None
    if answer.error is None:
        named = answer.answer or answer.predictions[0].label
        told = [answer.path, named, *(one.label for one in answer.predictions)]
    return pages.template("gallery_card.html").render(
        answer=answer, named=named, unknown=named == UNKNOWN, words=" ".join(told).lower()
    )


class Page(WholeFile):
    """A self-contained HTML page of thumbnails with their answers."""

    def __init__(self, path: Path, conditions: Mapping[str, Any], describe: str) -> None:
        self._start, self._end = around(str(conditions["model"]), describe)
        super().__init__(path)

    def _begin(self) -> None:
        self._file: IO[str] = self._stack.enter_context(self._temporary.open("w", encoding="utf-8"))
        self._file.write(self._start)

    def _add(self, answer: Answer) -> None:
        self._file.write(card(answer))

    def _finish(self) -> None:
        self._file.write(self._end)
