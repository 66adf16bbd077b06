"""What an evaluation writes besides its lines: scores, confusions, a page, the model card."""

from cvt_cli.cards import gather
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.evaluation import mistakes, predictions, report, score_files, several_report
from cvt_cli.evaluation.metrics import Metrics
from cvt_cli.evaluation.request import Asked
from cvt_cli.evaluation.result import Result
from cvt_cli.evaluation.run_models import Subject


def write(
    ready: ReadyModel,
    one: Subject,
    images: LabelledImages,
    result: Result,
    settings: Asked,
    several: bool,
    access: Access,
) -> None:
    """Write what was asked for: probabilities, the confusion matrix, a page, the model card."""
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
