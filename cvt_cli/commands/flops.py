"""``cvt flops``: multiply-accumulates and FLOPs, by arithmetic."""

from typing import TYPE_CHECKING

from cvt_cli.base.text import counted, human_count
from cvt_cli.commands import options, output

if TYPE_CHECKING:
    from cvt_cli.spec.costs import Costs


def flops(
    network: options.ArchitectureArgument = None,
    variant: options.Variant = None,
    model: options.Architecture = None,
    res: options.Res = None,
    num_classes: options.NumClasses = None,
    json_output: options.Json = False,
) -> None:
    """Count multiply-accumulates (MACs) and FLOPs of one image.

    Counts linear layers, convolutions and attention products, per stage. One MAC is two FLOPs; what
    the paper calls FLOPs are MACs. Without arguments, all variants are listed. No checkpoint is
    needed.

    Examples:
      cvt flops
      cvt flops 21 --res 384

    See also: cvt count-params (count parameters), cvt benchmark (measure speed)
    """
    from cvt_cli.checkpoints.architecture import architectures_of

    variant, model = options.architecture(network, variant, model)
    asked = architectures_of(variant, model, res, num_classes, output.access())
    found = [costs for costs, _ in asked]
    if json_output:
        output.print_costs_json(found)
    elif len(found) == 1:
        _print_one(found[0])
    else:
        output.print_table(
            "Multiply-accumulates and floating-point operations of one image",
            ("variant", "input", "classes", "MACs", "FLOPs", "paper (MACs)", "ours to paper"),
            [
                (
                    costs.variant,
                    f"{costs.height}x{costs.width}",
                    str(costs.num_classes),
                    f"{costs.macs:,}",
                    f"{costs.flops:,}",
                    human_count(costs.paper_macs),
                    output.difference(costs.macs, costs.paper_macs),
                )
                for costs in found
            ],
        )


def _print_one(costs: "Costs") -> None:
    output.print_table(
        f"{costs.variant} at {costs.height}x{costs.width}, "
        f"{counted(costs.num_classes, 'class')}, one image",
        ("stage", "operation", "kind", "MACs", "FLOPs", "share"),
        [
            (
                output.stage_name(row.stage),
                row.operation,
                row.kind,
                f"{row.macs:,}",
                f"{2 * row.macs:,}",
                f"{100 * row.macs / costs.macs:.1f} %",
            )
            for row in costs.rows
            if row.macs
        ],
        text_columns=3,
    )
    output.emit(
        f"total   {costs.macs:,} MACs ({human_count(costs.macs)}MACs) = "
        f"{costs.flops:,} FLOPs (2 per MAC)"
    )
    if costs.paper_macs is not None:
        output.emit(
            f"paper   {human_count(costs.paper_macs)}MACs, there called FLOPs; "
            f"ours differs by {output.difference(costs.macs, costs.paper_macs)}"
        )
