"""Make the checkpoint that is part of the package from a training run, with its card.

    python tests/scripts/embed_nano.py RUN CIFAR10 "two cores of …"

RUN is what `cvt finetune` left; its best epoch is stored in half precision. CIFAR10 is the folder
with train/ and test/: what the stored weights score on the 10,000 test images is written into the
card. The last argument says in words what the run was computed on.
"""

import sys
from dataclasses import replace
from pathlib import Path

from cvt_cli import evaluate
from cvt_cli.base import files
from cvt_cli.cards import card, gather, record
from cvt_cli.cards.about import About, sizes_of
from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.model import weights
from cvt_cli.spec.published import CHECKPOINTS

NAME = "cvt-nano-cifar10"


def main(run: Path, cifar10: Path, hardware: str) -> None:
    target = CHECKPOINTS[NAME].embedded
    assert target is not None
    best = weights.load(run / "best")
    weights.save(target, best.model, best.labels, best.preprocessing, "", half=True)
    facts = {**(record.read(run / "best").training or {}), "hardware": hardware}
    write_card(target, record.Record(facts), cifar10)


def write_card(target: Path, kept: record.Record, cifar10: Path) -> None:
    """Measure the stored weights on the test images, and write the card."""
    result = evaluate(cifar10, NAME, engine="torch")
    # The known set's test images, which the run has not seen.
    document = {**result.to_json(), "data": "cifar10", "n_trained_on": 0}
    checkpoint = Checkpoint.at(target, CHECKPOINTS[NAME], NAME)
    about = About(
        NAME,
        checkpoint.described(),
        replace(kept, results=()),
        known=checkpoint.known,
        license=CHECKPOINTS[NAME].license,
        weights_sha256=checkpoint.weights_sha256,
        files=sizes_of(target),
    )
    about = gather.with_results(about, [("the evaluation", document)], print)
    about.record.write(target)
    files.write_text(target / folders.CARD_FILE, card.compose(about).text)
    print(f"{target}: top-1 {document['top1_correct']} of {document['n']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
