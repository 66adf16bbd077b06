"""What is published of a checkpoint stands beside what was measured of the same images."""

from dataclasses import replace

import numpy as np

from cvt_cli.evaluation.counts import Counts
from cvt_cli.evaluation.result import PublishedScores, published_beside
from cvt_cli.spec.labels import imagenet
from cvt_cli.spec.preprocessing import Preprocessing


def test_a_published_number_stands_beside_ours_on_the_whole_set_alone() -> None:
    whole = Counts(1000)
    whole.add(np.eye(1000, dtype=np.float32), np.arange(1000))
    metrics = replace(whole.metrics(imagenet()), n=50_000, top1_correct=40_825)
    preprocessing = Preprocessing.published(224, 224)

    def beside(model: str = "cvt-13", size: int = 224, **changed: int) -> PublishedScores | None:
        at_size = replace(preprocessing, height=size)
        return published_beside(model, at_size, replace(metrics, **changed))

    assert beside().paper_top1 == 0.816
    assert beside().verdict.startswith("agrees with the third-party measurement: +0.06 points")
    assert beside(top1_correct=40_000).verdict.startswith("does not agree with")
    assert beside(n=49_999) is None
    assert beside("cvt-nano-cifar10") is None
    assert beside(size=384) is None
