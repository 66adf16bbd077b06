"""What an evaluation writes besides its lines: scores, confusions, a page, the model card."""

from collections.abc import Sequence

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
        NotWritten: a file could not be written; the error has the results.
        WritingInterrupted: so has this one.
    """
    try:
        for ready, one, found in zip(models, subjects, results, strict=True):
            _write(ready, one, images, found, settings, len(models) > 1, access)
    except CvtError as error:
        raise NotWritten(error, results) from error
    except KeyboardInterrupt:
        raise WritingInterrupted(results) from None


def _write(
    ready: ReadyModel,
    one: Subject,
    images: LabelledImages,
    result: Result,
    settings: Asked,
    several: bool,
    access: Access,
) -> None:
    say = access.say
    name = predictions.name_in_files(ready.model) if several else None
    if settings.scores is not None:
        path = predictions.named_for(settings.scores, name)
        conditions = {**ready.conditions(), "data": settings.data, "exif": settings.exif}
        score_files.write_scores(path, one, images, conditions)
        say(f"written: `{path}`")
    if settings.confusion is not None:
        path = predictions.named_for(settings.confusion, name)
        assert isinstance(result.metrics, Metrics)  # it was refused of several labels
        score_files.write_confusion(path, result.metrics.measures, one.labels)
        say(f"written: `{path}`")
    if settings.report is not None:
        folder = settings.report / name if name else settings.report
        document = result.to_json()
        if one.labels.several:
            path = several_report.write_report(folder, document)
        else:
            overlays = (
                mistakes.explain(ready, one, images, settings, access) if settings.explain else {}
            )
            path = report.report_on(folder, document, one, images, settings.exif, overlays)
        say(f"written: `{path}`")
    if settings.card is not None:
        sources = [("the result", result.to_json())]
        gather.add(settings.card, sources, say, overwrite=settings.overwrite)
