"""``cvt models``: every checkpoint that is known by name."""

from cvt_cli import catalogue, options, output
from cvt_cli.cache import human_bytes


def models(json_output: options.Json = False) -> None:
    """List the known checkpoints: cost, accuracy, licence, and which are on this machine.

    Accuracy is on ImageNet-1k. `cvt download NAME` fetches one ahead; a command that is given its
    name does so too. Any other CvT on the hub is used by its repository, owner/name.

    Example: cvt models
    """
    known = catalogue.known_checkpoints()
    if json_output:
        output.print_json([row.to_json() for row in known])
        return
    rows = []
    for row in known:
        here = "in the package" if row.checkpoint.embedded else "yes" if row.cached else "no"
        rows.append(
            (
                row.checkpoint.name,
                here + (f", {human_bytes(row.bytes)}" if row.bytes else ""),
                f"{row.checkpoint.size}x{row.checkpoint.size}",
                output.human_count(row.params),
                output.human_count(row.macs),
                *(
                    (f"{s.paper_top1:.1f}", f"{s.top1:.2f}", f"{s.real:.1f}", f"{s.v2:.1f}")
                    if (s := row.checkpoint.scores)
                    else ("",) * 4
                ),
                row.checkpoint.licence,
            )
        )
    output.print_table(
        "Checkpoints; accuracy in % on ImageNet-1k, MACs of one image",
        (
            "name",
            "here",
            "input",
            "parameters",
            "MACs",
            "paper top-1",
            "top-1",
            "ReaL",
            "V2",
            "licence",
        ),
        rows,
        text_columns=2,
    )
    print(
        "paper: table 3 of arXiv 2103.15808; the other columns: a third party's measurements of "
        "the published weights"
    )
