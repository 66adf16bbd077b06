"""What a model costs that is named by variant or by ``--model``, without its weights."""

from cvt_cli.base.errors import CheckpointError, UsageError
from cvt_cli.checkpoints import headers
from cvt_cli.checkpoints.locate import Access, Repository, find, held
from cvt_cli.spec.config import DEFAULT_SIZES, VARIANTS, CvTConfig, parse_size, parse_variant
from cvt_cli.spec.costs import Costs, costs


def read_architecture(text: str, access: Access) -> tuple[str, CvTConfig, tuple[int, int]]:
    """Name, config and input size of a model, from its name, JSON files or header alone.

    Raises:
        UsageError: as `find`.
        CheckpointError: not found, or a pickle, which does not say without torch.
        ConfigError: its config holds a value that no published CvT has.
    """
    found = find(text, access)
    if isinstance(found, Repository):
        if found.known:
            known = found.known
            return known.name, VARIANTS[known.variant], (known.size, known.size)
        found = held(found, access, need="config")
    if found.needs_torch:
        *first, last = VARIANTS
        raise CheckpointError(
            f"`{found.path}` cannot be read without torch, which this command does not load",
            hint="give the architecture in place of the file: "
            f"--variant {', '.join(first)} or {last}",
        )
    if found.kind == "file" and found.record is None:  # it does not say its input size
        shapes = headers.safetensors_shapes(found.path)
        variant, config = headers.variant_of_shapes(shapes, found.path)
        size = found.known.size if found.known else DEFAULT_SIZES[variant]
        return found.name, config, (size, size)
    said = found.described()
    return found.name, said.config, (said.preprocessing.height, said.preprocessing.width)


def costs_of(
    variant: str | None,
    model: str | None,
    res: str | None,
    num_classes: int | None,
    access: Access,
) -> list[Costs]:
    """What ``flops`` and ``count-params`` are asked for; without a model, all variants.

    Raises:
        UsageError, CheckpointError, ConfigError: as `architectures_of`.
    """
    found = architectures_of(variant, model, res, num_classes, access)
    return [costs for costs, _ in found]


def architectures_of(
    variant: str | None,
    model: str | None,
    res: str | None,
    num_classes: int | None,
    access: Access,
) -> list[tuple[Costs, CvTConfig]]:
    """The networks that are asked for, with their costs at their sizes; else all variants.

    Raises:
        UsageError: both a variant and a model, or a value that cannot be.
        CheckpointError, ConfigError: as `read_architecture`.
    """
    if variant and model:
        raise UsageError("give --variant or --model, not both")
    size = parse_size(res) if res else None
    asked: list[tuple[str, CvTConfig, list[tuple[int, int]]]]
    if model:
        name, config, own_size = read_architecture(model, access)
        asked = [(name, config, [own_size])]
    elif variant:
        key = parse_variant(variant)
        asked = [(key, VARIANTS[key], [(DEFAULT_SIZES[key],) * 2])]
    else:
        asked = [
            (key, config, [(32, 32)] if key == "nano" else [(224, 224), (384, 384)])
            for key, config in VARIANTS.items()
        ]
    found = []
    for name, config, own in asked:
        config = config.with_classes(num_classes or config.num_classes)
        for height, width in [size] if size else own:
            found.append((costs(name, config, height, width), config))
    return found
