"""What a model costs that is named by variant or by ``--model``, without its weights."""

from cvt_cli.base.errors import CheckpointError, UsageError
from cvt_cli.checkpoints import headers
from cvt_cli.checkpoints.locate import Access, Repository, find, held
from cvt_cli.spec import variants
from cvt_cli.spec.config import CvTConfig, Size
from cvt_cli.spec.costs import Costs, costs
from cvt_cli.spec.variants import VARIANTS, parse_variant


def read_architecture(text: str, access: Access) -> tuple[str, CvTConfig, Size]:
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
            return known.name, VARIANTS[known.variant].config, Size.square(known.size)
        found = held(found, access, need="config")
    if found.needs_torch:
        raise CheckpointError(
            f"`{found.path}` cannot be read without torch, which this command does not load",
            hint=f"name the architecture instead of the file: --variant {variants.names()}",
        )
    if found.kind == "file" and found.record is None:  # it does not say its input size
        shapes = headers.safetensors_shapes(found.path)
        variant, config = headers.variant_of_shapes(shapes, found.path)
        if found.known:
            return found.name, config, Size.square(found.known.size)
        return found.name, config, VARIANTS[variant].size
    said = found.described()
    return found.name, said.config, said.preprocessing.size


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
    size = Size.of(res)
    asked: list[tuple[str, CvTConfig, list[Size]]]
    if model:
        name, config, own_size = read_architecture(model, access)
        asked = [(name, config, [own_size])]
    elif variant:
        key = parse_variant(variant)
        asked = [(key, VARIANTS[key].config, [VARIANTS[key].size])]
    else:
        asked = [(key, v.config, v.sizes) for key, v in VARIANTS.items()]
    found = []
    for name, config, own in asked:
        config = config.with_classes(num_classes or config.num_classes)
        for height, width in [size] if size else own:
            found.append((costs(name, config, height, width), config))
    return found
