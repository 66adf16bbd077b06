"""``cvt count-params``: trainable parameters, by arithmetic."""

from typing import TYPE_CHECKING

import typer

from cvt_cli.base.text import counted, human_count
from cvt_cli.commands import options, output

if TYPE_CHECKING:
    from cvt_cli.spec.costs import Costs


def count_params(
    ctx: typer.Context,
    network: options.ArchitectureArgument = None,
    variant: options.Variant = None,
    model: options.Architecture = None,
    res: options.Res = None,
    num_classes: options.NumClasses = None,
    json_output: options.Json = False,
) -> None:
    """Count trainable parameters, per stage and operation.

    The number does not depend on the input size. Without arguments, all variants are listed. No
    checkpoint is needed.

    Examples:
      cvt count-params
      cvt count-params 21

    See also: cvt flops (count operations), cvt info (describe one model)
    """
    from cvt_cli.checkpoints.architecture import architectures_of

    if not json_output:  # which has the MACs too
        options.refuse(ctx, ["--res"], "the number of parameters does not depend on it")
    variant, model = options.architecture(network, variant, model)
    asked = architectures_of(variant, model, res, num_classes, output.access())
    found = [costs for costs, _ in asked]
    if json_output:
        output.print_costs_json(found)
    elif len(found) == 1:
        _print_one(found[0])
    else:
        output.print_table(
            "Trainable parameters",
            ("variant", "classes", "parameters", "paper", "ours to paper"),
            [
                (
                    costs.variant,
                    str(costs.num_classes),
                    f"{costs.params:,}",
                    human_count(costs.paper_params),
                    output.difference(costs.params, costs.paper_params),
                )
                for costs in {costs.variant: costs for costs in found}.values()
            ],
        )


def _print_one(costs: "Costs") -> None:
    output.print_table(
        f"{costs.variant}, {counted(costs.num_classes, 'class')}",
        ("stage", "operation", "parameters", "share"),
        [
            (
                output.stage_name(row.stage),
                row.operation,
                f"{row.params:,}",
                f"{100 * row.params / costs.params:.1f} %",
            )
            for row in costs.rows
            if row.params
        ],
        text_columns=2,
    )
    output.emit(f"total   {costs.params:,} parameters ({human_count(costs.params)})")
    if costs.paper_params is not None:
        output.emit(
            f"paper   {human_count(costs.paper_params)}; "
            f"ours differs by {output.difference(costs.params, costs.paper_params)}"
        )
