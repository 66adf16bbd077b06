"""The parts of a set, which are folders such as ``train/``, and folders around everything."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from cvt_cli.base.text import counted
from cvt_cli.datasets.imagenet import has_table
from cvt_cli.datasets.labelled import Split
from cvt_cli.images import finding
from cvt_cli.images.trees import Tree

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the folders of the parts of a set are called, in any case of letters; first wins."""

PARTS_OF_SPLIT: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test")}
"""The parts that a split is taken from; the first that there is."""

PART_OF = {name: part for part, names in PARTS.items() for name in names}
"""The part that each name is of."""


def parts_of(tree: Tree) -> dict[str, str]:
    """The folder of each part that there is.

    A part holds class folders, or images and a table of their labels. A folder of such a name that
    holds images itself is a class, unless another folder shows that these are parts.
    """
    folders, _ = tree.listing()
    # The names that come first in `PARTS`, and of one in two cases of letters the small ones.
    named = sorted(
        (name for name in folders if name.casefold() in PART_OF),
        key=lambda name: (list(PART_OF).index(name.casefold()), name.islower() - 1, name),
    )
    kinds = {name: _kind(tree, name) for name in named}
    if "part" not in kinds.values():
        others = any(tree.has_images(name) for name in folders if name not in named)
        kinds = {name: kind for name, kind in kinds.items() if kind == "both" and not others}
    parts: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind != "empty":
            parts.setdefault(PART_OF[name.casefold()], name)
    return parts


def _kind(tree: Tree, name: str) -> Literal["part", "class", "both", "empty"]:
    """What a folder with a part's name is by what it holds; "both" has images beside folders."""
    inner = tree.below(name)
    folders, files = inner.listing()
    own = any(finding.is_image_name(file) for file in files)
    if own and (has_table(inner) or has_table(tree)):
        return "part"
    if any(inner.has_images(folder) for folder in folders):
        return "both" if own else "part"
    return "class" if own else "empty"


def beside(tree: Tree, used: list[str]) -> list[str]:
    """What lies beside the parts that are used and has images, as words for a message."""
    folders, files = tree.listing()
    unused = [
        f"`{name}`"
        for name in sorted(folders, key=finding.natural_key)
        if name not in used and tree.has_images(name)
    ]
    count = sum(map(finding.is_image_name, files))
    return unused + ([counted(count, "image")] if count else [])


_HARMLESS = ("readme", "license", "licence", "desktop", "thumbs")
"""Names, without suffix, of files that lie in a folder and are not part of the set."""


def entered(tree: Tree, in_part: bool = False) -> Tree:
    """The lone folder in which everything lies, unless it is a part or a lone class; in a part
    there is no other, as in ``train/train/cat``."""
    while True:
        folders, files = tree.listing()
        stems = (name.partition(".")[0].casefold() for name in files)
        if len(folders) != 1 or any(stem not in _HARMLESS for stem in stems):
            return tree
        (name,) = folders
        if name.casefold() in PART_OF and not in_part:
            return tree
        inner = tree.below(name)
        inner_folders, inner_files = inner.listing()
        if any(map(finding.is_image_name, inner_files)):
            return inner if has_table(inner) else tree
        # In Tiny ImageNet a class holds a folder `images`.
        if inner_folders == ["images"] and not inner_files:
            return tree
        tree = inner


_LIKE_A_PART = re.compile(
    "(?<![a-z])(train|training|val|valid|validation|dev|eval|test|testing|pred|prediction|fold)"
    "(?:set|data|images|imgs)?(?![a-z])"
)
"""In what other sets call their parts: "seg_train", "training_set", "Test data", "fold_1"."""

_SOME_IMAGES = re.compile(
    r"(?<![a-z])(?:set|data|images?|imgs?|photos|pictures|parts?|batch)(?![a-z])"
)
"""In what they call some of their images: "images_001", "HAM10000_images_part_1"."""


def unlike_classes(
    images: Mapping[str, Sequence[str]], told: bool = False
) -> tuple[str, bool] | None:
    """Why folders that are read as classes look like the parts of a set, as ends a sentence.

    Args:
        images: the names of those in each folder, which begin with the folder's.
        told: whether a table says something else of these images (`tables_beside`).

    Returns:
        It, and whether it is certain enough to refuse them; None where they look like classes.
    """
    if len(images) < 2:
        return None
    small = [name.casefold() for name in images]
    words = {name: word for name in small if (word := _LIKE_A_PART.search(name))}
    parts = {PART_OF.get(word[1], word[1]) for word in words.values()}
    alike = len(parts) > 1 and len({_rest(name, word[0]) for name, word in words.items()}) == 1
    flat = any(names[0].count("/") < 2 for names in images.values())  # as is usual
    if len(words) == len(small):
        inner = [_folders_in(names) for names in images.values()]
        recurring = Counter(name for names in inner for name in names if name)
        if again := [name for name, count in recurring.items() if count > 1]:
            return f"hold folders of the same names, such as `{min(again)}`", True
        if alike:
            return "have the names of parts, and hold images and no class folders", True
    elif not flat:
        first, *others = (_folders_in(names) for names in images.values())
        if len(first) > 1 and "" not in first and all(one == first for one in others):
            return "all hold the same folders", False
    if alike:
        return "have names of parts among them", False
    if len(set(map(_rest, small))) == 1 and all(map(_SOME_IMAGES.search, small)):
        why = "differ in numbers alone"
        return (
            (f"{why}, and a table says something else of these images", True)
            if told
            else (why, False)
        )
    return None


def _rest(name: str, part: str = "") -> str:
    """What of a folder's name may tell a class, without the part that it names."""
    return re.sub(r"[\W\d_]+", "", _SOME_IMAGES.sub("", name.replace(part, "", 1)))


def _folders_in(names: Sequence[str]) -> set[str]:
    """The folders in the lone one in which everything lies; "" stands for images beside them."""
    parted, depth = [name.split("/") for name in names], 1
    while True:
        found = {parts[depth] if len(parts) > depth + 1 else "" for parts in parted}
        if len(found) > 1 or "" in found:
            return found
        depth += 1
