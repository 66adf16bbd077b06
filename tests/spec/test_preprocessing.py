"""Preprocessing is the official code's: Pillow with torchvision's transforms, to the bit."""

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from cvt_cli.base.errors import ConfigError
from cvt_cli.images import decode, transform
from cvt_cli.spec.config import Size
from cvt_cli.spec.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tests_shared import golden, test_data

PUBLISHED = {
    "crop224": Preprocessing.published(224, 224),
    "squash384": Preprocessing.published(384, 384),
}


def torchvision_pipeline(record: Preprocessing) -> transforms.Compose:
    """The official code's transforms (lib/dataset/transformas/build.py)."""
    bicubic = transforms.InterpolationMode.BICUBIC
    size = [record.height, record.width]
    resize = [transforms.Resize(size, bicubic)]
    if record.resize == "crop":
        resize = [transforms.Resize(record.shorter_side, bicubic), transforms.CenterCrop(size)]
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return transforms.Compose([*resize, transforms.ToTensor(), normalise])


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "record",
    [
        PUBLISHED["crop224"],
        PUBLISHED["squash384"],
        Preprocessing(32, 32, "crop", crop_pct=1.0),
        Preprocessing(224, 160, "crop"),
        Preprocessing(96, 128, "squash"),
    ],
    ids=Preprocessing.describe,
)
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (451, 300), (256, 256), (32, 32), (1, 1), (1000, 37), (33, 90)]
)
def test_pixels_equal_those_of_torchvision(record: Preprocessing, size: tuple[int, int]) -> None:
    image = noise(*size)

    wanted = torchvision_pipeline(record)(image).numpy()

    assert np.array_equal(transform.preprocess(image, record), wanted)


@pytest.mark.parametrize("entry", golden("preprocess")["images"], ids=lambda e: e["file"])
def test_real_pictures_equal_the_official_transforms(entry, request) -> None:
    folder, _, name = entry["file"].partition("/")
    path = (
        request.getfixturevalue("awkward") / name
        if folder == "awkward"
        else test_data(entry["file"])
    )
    image = decode.load(path, exif=False)

    assert list(image.size) == entry["size_wh"]
    # Another libjpeg may differ by a grey level or two.
    mean = np.asarray(image).reshape(-1, 3).mean(axis=0)
    assert mean == pytest.approx(entry["decoded_rgb_mean"], abs=0.05)
    for name, wanted in entry["pipelines"].items():
        pixels = np.asarray(transform.resize(image, PUBLISHED[name]))
        assert pixels.reshape(-1, 3).mean(axis=0) == pytest.approx(wanted["uint8_mean"], abs=0.05)
        array = transform.preprocess(image, PUBLISHED[name])
        assert array.mean(axis=(1, 2)) == pytest.approx(wanted["tensor_mean"], abs=1e-3)
        assert array.std(axis=(1, 2)) == pytest.approx(wanted["tensor_std"], abs=1e-3)


@pytest.mark.parametrize(
    ("size", "wanted"), [(224, ("crop", 256)), (383, ("crop", 437)), (384, ("squash", None))]
)
def test_the_published_models_crop_below_384_and_squash_from_there(size, wanted) -> None:
    record = Preprocessing.published(size, size)

    assert record.resize == wanted[0]
    if record.resize == "crop":
        assert record.shorter_side == wanted[1]


def test_another_size_keeps_to_the_rule_and_a_squash_on_purpose_stays() -> None:
    assert PUBLISHED["crop224"].with_size(Size(384, 384)) == PUBLISHED["squash384"]
    assert PUBLISHED["squash384"].with_size(Size(224, 224)) == PUBLISHED["crop224"]
    assert PUBLISHED["squash384"].with_size(Size(384, 512)).resize == "squash"
    assert Preprocessing(96, 128, "squash").with_size(Size(64, 64)).resize == "squash"


@pytest.mark.parametrize(
    ("size", "content"),
    [
        ((400, 200), (0, 16, 64, 48)),
        ((200, 400), (16, 0, 48, 64)),
        ((30, 20), (0, 11, 64, 53)),
        ((64, 64), (0, 0, 64, 64)),
        ((1, 999), (32, 0, 33, 64)),
    ],
)
def test_a_padded_picture_is_whole_and_its_bars_have_the_mean_colour(size, content) -> None:
    record = Preprocessing(64, 64, "pad")
    image = noise(*size)
    left, top, right, bottom = content

    found = np.asarray(transform.resize(image, record))

    wanted = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    assert np.array_equal(found[top:bottom, left:right], np.asarray(wanted))
    around = np.ones((64, 64), bool)
    around[top:bottom, left:right] = False
    assert (found[around] == (124, 116, 104)).all()
    assert np.abs(transform.preprocess(image, record)[:, around]).max(initial=0) < 0.01


@pytest.mark.parametrize(
    "record", [Preprocessing(64, 48, "pad"), Preprocessing(224, 224, "pad"),
               Preprocessing(384, 384, "crop"), Preprocessing(224, 224, "squash")],
    ids=Preprocessing.describe,
)  # fmt: skip
def test_what_is_chosen_is_kept_in_the_file_that_transformers_reads(record) -> None:
    import transformers

    config = record.to_transformers()

    assert Preprocessing.from_transformers(config).describe() == record.describe()
    assert record.with_size(Size(448, 448)).resize == record.resize
    kind = getattr(transformers, config["image_processor_type"])
    processor = kind(**{k: v for k, v in config.items() if k != "image_processor_type"})
    pixels = processor(noise(500, 375), return_tensors="np")["pixel_values"][0]
    assert pixels.shape[1:] == record.size
    if record.resize != "pad":  # which it cannot
        ours = transform.preprocess(noise(500, 375), record)
        assert np.abs(pixels - ours).mean() < 0.05


def test_a_length_that_was_written_is_read_back() -> None:
    for size in (443, 815, 859, 886, 890):  # whose quotients round the other way
        record = Preprocessing(size, size, "crop")
        again = Preprocessing.from_transformers(record.to_transformers())
        assert again.shorter_side == record.shorter_side


def test_an_extreme_shape_is_resampled_close_to_the_whole(monkeypatch) -> None:
    record = PUBLISHED["crop224"]
    image = noise(5, 5000)

    whole = transform.resize(image, record)
    monkeypatch.setattr(transform, "LARGEST_RESIZED", 1000)
    box = transform.resize(image, record)

    difference = abs(np.asarray(whole, dtype=int) - np.asarray(box, dtype=int))
    assert difference.mean() < 1 and difference.max() < 16


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"size": 224, "crop_pct": 0.875}, PUBLISHED["crop224"]),
        ({"size": {"shortest_edge": 224}}, PUBLISHED["crop224"]),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, PUBLISHED["squash384"]),
        (
            {"size": 384, "feature_extractor_type": "ConvNextFeatureExtractor"},
            PUBLISHED["squash384"],
        ),
        (
            {"size": {"height": 224, "width": 224}, "image_processor_type": "ViTImageProcessor"},
            Preprocessing(224, 224, "squash"),
        ),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            PUBLISHED["crop224"],
        ),
        (
            {  # crops to what is cropped already
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 224},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            PUBLISHED["crop224"],
        ),
    ],
)
def test_every_way_that_the_hub_writes_a_size_is_read(config, wanted) -> None:
    assert Preprocessing.from_transformers({"resample": 3, **config}) == wanted


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 224, "do_normalize": False}, "`do_normalize` is False; only true"),
        ({"size": 224, "resample": 9}, "`resample` is 9"),
        ({"size": 224, "resample": True}, "`resample` is True"),
        ({"size": 224, "crop_pct": 0}, "`crop_pct` is 0; it must be above 0"),
        ({"size": 224, "image_mean": []}, r"`mean` is \(\); it must be 3 numbers"),
        ({"size": "large"}, "`size` is 'large'; accepted are a number"),
        ({"size": 224, "rescale_factor": 1 / 127.5}, "`rescale_factor`"),
        ({"size": 16}, "`height` is 16; it must be an integer of at least 32"),
        ({"size": 224, "image_std": [0, 1, 1]}, "`std` is"),
        (
            {"size": 256, "do_center_crop": True, "crop_size": 224},
            "`crop_size` of 224 crops twice in ConvNext, .*; leave out `do_center_crop`",
        ),
    ],
)
def test_preprocessing_that_is_not_supported_is_named(config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing.from_transformers(config)
