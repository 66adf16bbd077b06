"""CvT, the Convolutional vision Transformer, on the command line and from Python."""

from typing import TYPE_CHECKING

from cvt_cli.base.errors import CvtError
from cvt_cli.base.package import __version__

if TYPE_CHECKING:
    from cvt_cli.classifier import Classifier
    from cvt_cli.evaluation.evaluate import evaluate
    from cvt_cli.finetuning.finetune import finetune
    from cvt_cli.spec.formats import Int8

__all__ = ["Classifier", "CvtError", "Int8", "__version__", "evaluate", "finetune"]


def __getattr__(name: str) -> object:
    """Import the Python interface when it is asked for, so that light commands stay light."""
    if name == "Classifier":
        from cvt_cli.classifier import Classifier

        return Classifier
    if name in ("evaluate", "finetune"):
        from cvt_cli.base import torchrun

        torchrun.will_say_that_it_ends()
    if name == "evaluate":
        from cvt_cli.evaluation.evaluate import evaluate

        return evaluate
    if name == "finetune":
        from cvt_cli.finetuning.finetune import finetune

        return finetune
    if name == "Int8":
        from cvt_cli.spec.formats import Int8

        return Int8
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Also what is imported only when it is asked for."""
    return sorted({*globals(), *__all__})
