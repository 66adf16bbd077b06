"""Maps lie on the photograph where what they show is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvt_cli.base.progress import silent
from cvt_cli.checkpoints.locate import Access
from cvt_cli.explanation import explainer
from cvt_cli.explanation.explain import Asked, Explanation, explain
from cvt_cli.explanation.geometry import PIXELS, Grid, View, key_grid, token_grid
from cvt_cli.explanation.methods import METHODS
from cvt_cli.images import sources
from cvt_cli.model import weights
from cvt_cli.model.network import CvT
from cvt_cli.spec.config import CvTConfig, StageConfig
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.variants import VARIANTS

GREY = (124, 116, 104)  # about 0 when normalised


def that_sees_brightness() -> CvT:
    """A network whose class 0 is as likely as the brightest part is bright, wherever it is.

    Channel 0 is the brightness and channel 1 its negative; two more are constant, so that LayerNorm
    leaves a difference. All kernels are means. Every query attends to bright keys, and what the
    last block reads there goes to the class token.
    """
    stages = (
        StageConfig(8, 1, 1, 7, 4, 2, 1.0),
        StageConfig(8, 1, 1, 3, 2, 1, 1.0),
        StageConfig(8, 2, 2, 3, 2, 1, 1.0),
    )
    model = CvT(CvTConfig(stages, 2))
    signs = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and ".bn." not in name:
                parameter.zero_()
        for index, stage in enumerate(stages):
            part = model.get_submodule(f"stage{index}")
            proj = part.patch_embed.proj
            if index == 0:
                proj.weight[:2] = signs[:, None, None, None] / (3 * stage.kernel**2)
            else:
                for channel in (0, 1):
                    proj.weight[channel, channel] = 1 / stage.kernel**2
            proj.bias[2:4] = signs
        last = model.get_submodule("stage2")
        last.cls_token[0, 0, 2:4] = signs
        for block in last.blocks:
            for projection in (block.attn.conv_proj_k, block.attn.conv_proj_v):
                projection.conv.weight.fill_(1 / 9)
            for head in (0, 4):
                block.attn.proj_q.bias[head] = 8
                block.attn.proj_k.weight[head, 0] = 1
                block.attn.proj_v.weight[head, 0] = 1
        for head in (0, 4):
            last.blocks[1].attn.proj.weight[:2, head] = signs
        model.head.weight[:, 0] = signs
    return model.eval()


@dataclass(frozen=True)
class Case:
    """A photograph and how it becomes the input."""

    preprocessing: Preprocessing
    photo: tuple[int, int]  # height and width, upright
    factors: tuple[int, int]  # pixels of the photograph for one of the input, down and across
    orientation: int = 1  # as EXIF has it


CASES = {
    "squash": Case(Preprocessing(128, 128, "squash"), (256, 512), (2, 4)),
    "crop": Case(Preprocessing(128, 128, "crop", 0.8), (320, 480), (2, 2)),
    "turned": Case(Preprocessing(128, 128, "crop", 0.8), (320, 480), (2, 2), 6),
    "mirrored": Case(Preprocessing(128, 128, "squash"), (256, 512), (2, 4), 7),
    "384x512": Case(Preprocessing(384, 512, "squash"), (768, 1024), (2, 2)),
    "tall": Case(Preprocessing(128, 128, "squash"), (1024, 256), (8, 2)),
    "wide": Case(Preprocessing(128, 128, "crop", 0.8), (320, 1280), (2, 2)),
    "padded": Case(Preprocessing(256, 256, "pad"), (256, 512), (2, 2)),
}

STORED = {
    1: None,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
}
"""What a camera did to an upright picture before it stored it with an orientation."""


def with_square(path: Path, case: Case, square: tuple[int, int, int, int]) -> Path:
    """A photograph of a white square: left, top, right, bottom."""
    image = Image.new("RGB", case.photo[::-1], GREY)
    image.paste((255, 255, 255), square)
    turn = STORED[case.orientation]
    exif = Image.Exif()
    exif[0x0112] = case.orientation
    (image if turn is None else image.transpose(turn)).save(path, exif=exif)
    return path


def explained(folder: Path, paths: list[Path], methods: tuple[str, ...]) -> list[Explanation]:
    ready, engine = explainer.load(str(folder), None, None, "cpu", Access(print, silent))
    asked = Asked(methods=methods, targets=("bright",))
    return list(explain(ready, engine, map(sources.source, map(str, paths)), asked))


def peak(laid: np.ndarray) -> tuple[float, float]:
    """The middle of what is as strong as the strongest, but for rounding."""
    strongest = np.nan_to_num(laid, nan=-np.inf) >= np.nanmax(laid) * (1 - 1e-4)
    y, x = np.nonzero(strongest)
    return float(y.mean()), float(x.mean())


@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_every_map_lies_in_the_bright_square_and_moves_with_it(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    names = Labels(("bright", "dark"))
    weights.save(tmp_path / "model", that_sees_brightness(), names, case.preprocessing, "")
    view = View.of(case.preprocessing, *case.photo)
    (top, _), (left, _) = view.rows.seen, view.columns.seen
    down, across = case.factors
    size = case.preprocessing.size
    if case.preprocessing.resize == "pad":  # half of the input is photograph
        size = type(size)(size.height // 2, size.width)
    height, width = (size.height // 4) * down, (size.width // 4) * across  # a quarter each
    squares = [
        (int(left) + x * width, int(top) + y * height, int(left) + (x + 1) * width,
         int(top) + (y + 1) * height)
        for y, x in ((1, 1), (2, 1), (1, 2))
    ]  # fmt: skip
    paths = [with_square(tmp_path / f"{i}.png", case, square) for i, square in enumerate(squares)]

    methods: tuple[str, ...] = ("hirescam", "layercam", "relevance", "attention")
    if name == "384x512":  # whose passes take long
        methods = ("attention",)
    elif name == "crop":
        methods = tuple(METHODS)

    found = explained(tmp_path / "model", paths, methods)

    for method in methods:
        peaks = []
        for one, (x0, y0, x1, y1) in zip(found, squares, strict=True):
            assert (one.size.height, one.size.width) == case.photo
            each = next(m for m in one.explained[0].maps if m.method == method)
            laid = one.laid(each)
            assert laid.shape == case.photo and laid.dtype == np.float32
            y, x = peak(laid)
            assert y0 <= y < y1 and x0 <= x < x1, (method, (y, x), (x0, y0, x1, y1))
            peaks.append((y, x))
        (y, x), (lower, same), (level, right) = peaks
        assert abs(lower - y - height) <= down and abs(same - x) <= across, method
        assert abs(right - x - width) <= across and abs(level - y) <= down, method


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("crop", (32, 288, 112, 368)),
        ("squash", (0, 256, 0, 512)),
        ("padded", (0, 256, 0, 512)),
    ],
)
def test_what_the_crop_leaves_out_is_not_seen(name: str, seen: tuple[float, ...]) -> None:
    case = CASES[name]
    view = View.of(case.preprocessing, *case.photo)
    top, bottom, left, right = seen

    laid = view.lay(np.ones((4, 4), np.float32), Grid(32, 1.5))

    assert (*view.rows.seen, *view.columns.seen) == seen
    rows, columns = np.nonzero(np.isfinite(laid))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == seen
    share = (bottom - top) * (right - left) / (case.photo[0] * case.photo[1])
    assert abs(view.not_seen - (1 - share)) < 1e-12
    assert np.isnan(laid).mean() == pytest.approx(view.not_seen, abs=1e-12)


@pytest.mark.parametrize(("variant", "stage"), [("13", 0), ("13", 1), ("13", 2), ("nano", 2)])
def test_tokens_lie_where_the_gradient_of_the_convolutions_says(variant: str, stage: int) -> None:
    """The pixels that a token's embedding reaches lie evenly around its place."""
    config = VARIANTS[variant].config
    grid = token_grid(config, stage)
    pixels = torch.zeros(1, 1, 256, 1, requires_grad=True)
    x = pixels
    for one in config.stages[: stage + 1]:
        kernel = torch.ones(1, 1, one.kernel, 1)
        x = torch.nn.functional.conv2d(x, kernel, stride=(one.stride, 1), padding=(one.padding, 0))
    token = x.shape[2] // 2

    x[0, 0, token, 0].backward()

    reached = pixels.grad[0, 0, :, 0].nonzero()[:, 0].double()
    assert (reached.min() + reached.max() + 1) / 2 == grid.stride * token + grid.offset
    keys = key_grid(grid)
    assert (keys.stride, keys.offset) == (2 * grid.stride, grid.offset)


def test_a_map_of_pixels_is_laid_pixel_by_pixel() -> None:
    values = np.random.default_rng(1).random((128, 128), np.float32)
    view = View.of(Preprocessing(128, 128, "crop", 1.0), 128, 192)

    laid = view.lay(values, PIXELS)

    assert np.abs(laid[:, 32:160] - values).max() < 1e-6
    assert np.isnan(laid[:, :32]).all() and np.isnan(laid[:, 160:]).all()
