"""What an evaluation writes besides its lines: scores, confusions, a page, the model card."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cvt_cli.base.errors import CvtError
from cvt_cli.cards import gather
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.evaluation import mistakes, predictions, report, score_files, several_report
from cvt_cli.evaluation.metrics import Metrics
from cvt_cli.evaluation.request import Asked
from cvt_cli.evaluation.result import NotWritten, Result, WritingInterrupted
from cvt_cli.evaluation.run_models import Subject


def write(
    models: Sequence[ReadyModel],
    subjects: Sequence[Subject],
    images: LabelledImages,
    results: list[Result],
    settings: Asked,
    access: Access,
) -> None:
    """Write what was asked for: probabilities, the confusion matrix, a page, the model card.

    Raises:
        NotWritten: a file could not be written, the others were; the error has the results.
        WritingInterrupted: so has this one.
    """
    failed: list[CvtError] = []
    try:
        for ready, one, found in zip(models, subjects, results, strict=True):
            several = len(models) > 1
            for output in _outputs(ready, one, images, found, settings, several, access):
                try:
                    if (path := output()) is not None:
                        access.say(f"written: `{path}`")
                except CvtError as error:  # the others may lie where there is room
                    failed.append(error)
    except KeyboardInterrupt:
        raise WritingInterrupted(results) from None
    for other in failed[1:]:
        access.say(f"error: {other}")
    if failed:
        raise NotWritten(failed[0], results) from failed[0]


def _outputs(
    ready: ReadyModel,
    one: Subject,
    images: LabelledImages,
    result: Result,
    settings: Asked,
    several: bool,
    access: Access,
) -> Iterator[Callable[[], Path | None]]:
    """What writes each of them, and gives its place where that is still to be said."""
    name = predictions.name_in_files(ready.model) if several else None

    def scores(path: Path) -> Path:
        conditions = {**ready.conditions(), "data": settings.data, "exif": settings.exif}
        score_files.write_scores(path, one, images, conditions)
        return path

    def confusion(path: Path) -> Path:
        assert isinstance(result.metrics, Metrics)  # it was refused of several labels
        score_files.write_confusion(path, result.metrics.measures, one.labels)
        return path

    def page(folder: Path) -> Path:
        document = result.to_json()
        if one.labels.several:
            return several_report.write_report(folder, document)
        overlays = (
            mistakes.explain(ready, one, images, settings, access) if settings.explain else {}
        )
        return report.report_on(folder, document, one, images, settings.exif, overlays)

    def card(folder: Path) -> None:
        sources = [("the result", result.to_json())]
        gather.add(folder, sources, access.say, overwrite=settings.overwrite)

    if settings.scores is not None:
        yield partial(scores, predictions.named_for(settings.scores, name))
    if settings.confusion is not None:
        yield partial(confusion, predictions.named_for(settings.confusion, name))
    if settings.report is not None:
        yield partial(page, settings.report / name if name else settings.report)
    if settings.card is not None:
        yield partial(card, settings.card)
