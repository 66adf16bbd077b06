"""``cvt info``: what one checkpoint is."""

from typing import Annotated, Any

import typer

from cvt_cli.commands import completion, options, output
from cvt_cli.spec.config import Size
from cvt_cli.spec.published import MEASURED_BY
from cvt_cli.spec.variants import variant_of


def info(
    model: Annotated[
        str,
        typer.Argument(
            parser=options.place,
            metavar="MODEL",
            autocompletion=completion.models,
            help="Model name, folder, file or hub repository.",
        ),
    ],
    revision: options.Revision = None,
    offline: options.Offline = False,
    res: options.Res = None,
    activation: options.Activation = None,
    json_output: options.Json = False,
) -> None:
    """Show what a model is: classes, input size, source, license.

    Published models also show accuracy, pre-training and limits (cvt card has more), and need no
    download; for other repositories only config and card are downloaded, not the weights.

    Examples:
      cvt info cvt-13
      cvt info runs/my_run

    See also: cvt models (all known models), cvt flops, cvt count-params
    """
    from cvt_cli.commands import catalogue

    size = Size.of(res)
    found = catalogue.describe(model, output.access(revision, offline), size, activation)
    document = found.to_json()
    if json_output:
        output.print_json(document)
        return
    for message in found.notes:
        output.note(message)
    names = found.described.labels.names
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    shown += "; an image may have several" * found.described.labels.several
    rows = [
        ("variant", variant_of(found.described.config) or "none of the known ones"),
        ("input", found.described.preprocessing.describe()),
        ("classes", f"{len(names)}: {shown}"),
        ("activation", found.described.config.activation),
        ("parameters", f"{document['params']:,}"),
        ("MACs", f"{document['macs']:,} for one image"),
        *_published(document),
        ("repository", found.repository or "none"),
        ("revision", found.revision or "none"),
        ("weights", str(found.weights or "not on this machine")),
        ("SHA-256", found.weights_sha256 or "not known"),
        ("license", found.license or "not known; see the card"),
        ("card", str(found.card or "none on this machine")),
    ]
    output.emit(found.name)
    for name, value in rows:
        output.emit(f"  {name:<11} {value}")


def _published(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The short of a published model's card."""
    scores = document["scores"]
    if scores is None:
        return []
    shares = {name: f"{100 * value:.2f}".rstrip("0").rstrip(".") for name, value in scores.items()}
    limits = [("limits" if not number else "", line) for number, line in
              enumerate(document["limits"])]  # fmt: skip
    return [
        ("accuracy", f"top-1 {shares['top1']} %, top-5 {shares['top5']} % on ImageNet-1k "
         f"({MEASURED_BY}); {shares['paper_top1']} % in the paper"),
        ("", f"top-1 {shares['real']} % by ReaL's labels, {shares['v2']} % on ImageNet-V2"),
        ("trained on", document["pretrained_on"]),
        *limits,
    ]  # fmt: skip
