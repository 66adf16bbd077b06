"""A page of thumbnails with their answers: one HTML file that needs nothing else."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cvt_cli.base.text import as_utf8
from cvt_cli.prediction import pages, shareable
from cvt_cli.prediction.answers import BETWEEN, NONE, Answer
from cvt_cli.prediction.whole_files import CardsPage

UNSURE = 0.5
"""Probability of the likeliest class below which an answer is marked as unsure, where the user
has not set a threshold."""

_CHIPS = 12
"""Classes that the summary names; the rest can be searched for."""

_LONG = 1.8
"""Longer side by shorter from which a picture is shown whole, and not cut to a square."""


@dataclass(frozen=True)
class _Written:
    """A card that waits for its place on the page."""

    score: float  # of the likeliest class; below 0 without one, so that it comes first
    offset: int  # in the file of the cards that wait
    size: int  # in bytes


class Page(CardsPage):
    """A self-contained HTML page of thumbnails with their answers, the least sure of them first.

    Their order is known with the last answer: until then a few numbers of each are in memory.
    """

    def _begin(self) -> None:
        super()._begin()
        self._written: list[_Written] = []
        self._classes: Counter[str] = Counter()
        self._unsure = self._unreadable = 0

    def _add(self, answer: Answer) -> None:
        content = self._card(answer).encode()
        score = answer.predictions[0].score if answer.predictions else -1.0
        self._written.append(_Written(score, self._cards.tell(), len(content)))
        self._cards.write(content)

    def _in_order(self) -> Iterator[bytes]:
        for one in sorted(self._written, key=lambda one: one.score):
            self._cards.seek(one.offset)
            yield self._cards.read(one.size)

    def _page(self) -> str:
        count, common = len(self._written), self._classes.most_common()
        return pages.template("gallery.html").render(
            title=f"{pages.images(count)} classified by "
            + shareable.title(str(self._conditions["model"])),
            day=f"{pages.now():%Y-%m-%d}",
            count=count,
            classes=common[:_CHIPS],
            more=len(common[_CHIPS:]),
            unsure=self._unsure,
            unsure_below=UNSURE,
            unreadable=self._unreadable,
            about=pages.about(self._conditions, data=pages.images(count)),
        )

    def _card(self, answer: Answer) -> str:
        """One image with its classes, or why it could not be read."""
        path = shareable.shown(answer.path)
        values: dict[str, Any] = {"path": path, "order": len(self._written)}
        if answer.error is not None:
            self._unreadable += 1
            error = answer.error.replace(answer.path, path)
            return pages.template("gallery_card.html").render(
                values, error=error, words=_words(path, error)
            )
        assert answer.thumbnail is not None
        if answer.several:
            return self._card_of_several(answer, values)
        first = answer.predictions[0]
        named = answer.answer or first.label
        unsure = answer.answer is None and first.score < UNSURE
        self._classes[named] += 1
        self._unsure += unsure
        unknown = answer.answer is not None and answer.answer != first.label
        return self._rendered(answer, values, named, unknown, unsure)

    def _card_of_several(self, answer: Answer, values: dict[str, Any]) -> str:
        """All classes that an image has, which may be none."""
        names = [one.label for one in answer.predictions]
        self._classes.update(names or [NONE])
        return self._rendered(answer, values, ", ".join(names) or NONE, not names, False)

    def _rendered(
        self, answer: Answer, values: dict[str, Any], named: str, unknown: bool, unsure: bool
    ) -> str:
        assert answer.thumbnail is not None
        shorter, longer = sorted(pages.jpeg_size(answer.thumbnail))
        words = _words(values["path"], named, *(one.label for one in answer.predictions))
        return pages.template("gallery_card.html").render(
            values,
            error=None,
            words=words,
            named=named,
            several=BETWEEN.join(one.label for one in answer.predictions) if answer.several else "",
            unknown=unknown,
            unsure=unsure,
            predictions=answer.predictions,
            thumbnail=answer.thumbnail,
            link=shareable.link(answer.path, self._folder),
            small=longer <= pages.SMALL_PIXELS,
            long=longer > _LONG * shorter,
        )


def _words(*texts: str) -> str:
    """What a card is found by."""
    return as_utf8(" ".join(texts)).lower()
