"""Pictures with none to three others in them, and the table that says which."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def composed(
    root: Path,
    classes: dict[str, list[Path]],
    counts: dict[str, int],
    *,
    side: int = 32,
    seed: int = 0,
    sizes: tuple[int, ...] = (1, 2, 3),
) -> Path:
    """``t.csv`` with ``path``, ``labels`` such as "cat|dog", and ``split``; the pictures beside it.

    Args:
        root: folder of the table, which is made.
        classes: pictures of each class; no picture is used in two parts.
        counts: pictures to compose of each part.
        side: of the pictures that are put in, in pixels; a composed one has twice that.
        seed: of what is drawn.
        sizes: how many classes a picture may have, each as often.
    """
    generator = np.random.default_rng(seed)
    rows = []
    (root / "images").mkdir(parents=True)
    names = sorted(classes)
    for part, (split, count) in enumerate(counts.items()):
        own = {name: sorted(classes[name])[part :: len(counts)] for name in names}
        for number in range(count):
            some = generator.choice(names, generator.choice(sizes), replace=False)
            noise = generator.integers(0, 256, (2 * side, 2 * side, 3))
            canvas = Image.fromarray((96 + noise // 8).astype(np.uint8))
            for name, cell in zip(some, generator.permutation(4), strict=False):
                path = own[name][generator.integers(len(own[name]))]
                picture = Image.open(path).convert("RGB").resize((side, side))
                canvas.paste(picture, (side * (int(cell) % 2), side * (int(cell) // 2)))
            place = Path("images", f"{split}-{number:04}.png")
            canvas.save(root / place)
            rows.append((place.as_posix(), "|".join(some), split))
    table = root / "t.csv"
    with table.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "labels", "split"), *rows])
    return table
