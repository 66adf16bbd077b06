"""``cvt models``: every checkpoint that is known by name."""

from cvt_cli.base.text import human_bytes
from cvt_cli.commands import options, output
from cvt_cli.spec import published


def models(json_output: options.Json = False) -> None:
    """List the known models with cost, accuracy and license.

    Also shows which are on this machine. Accuracy is on ImageNet-1k. cvt download NAME downloads
    one; other commands do so when needed. Any other CvT on the hub can be used by its repository
    name, owner/name.

    Examples:
      cvt models

    See also: cvt info (one model in detail), cvt download, cvt cache
    """
    from cvt_cli.commands import catalogue

    known = catalogue.known_checkpoints()
    if json_output:
        output.print_json([row.to_json() for row in known])
        return
    rows = [
        (
            row.checkpoint.name,
            human_bytes(row.bytes) if row.bytes else "no",
            str(row.checkpoint.size),
            f"{row.params / 1e6:.1f} M",
            f"{row.macs / 1e9:.2f} G",
            *(
                (f"{s.paper_top1:.1f}", f"{s.top1:.2f}", f"{s.real:.1f}", f"{s.v2:.1f}")
                if (s := row.checkpoint.scores)
                else ("",) * 4
            ),
        )
        for row in known
    ]
    columns = ("name", "here", "px", "params", "MACs", "paper", "top-1", "ReaL", "V2")
    output.print_table("Known checkpoints", columns, rows)
    licenses: dict[str, list[str]] = {}
    for row in known:
        licenses.setdefault(row.checkpoint.license, []).append(row.checkpoint.name)
    output.emit(
        "here: size on this machine; px: height and width of the input; MACs: of one image",
        "paper: top-1 on ImageNet-1k in %, table 3 of arXiv 2103.15808; top-1, ReaL, V2: the same",
        f"    weights measured by {published.MEASURED_BY}, {published.MEASURED_AT}, in %",
    )
    for license, names in licenses.items():
        shown = names if len(names) < 3 else (names[0], "…", names[-1])
        output.emit(f"{license}: {', '.join(shown)}")
