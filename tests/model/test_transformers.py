"""What is written opens in the real transformers, and the other way round."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoImageProcessor, CvtConfig, CvtForImageClassification

from cvt_cli.images import decode, transform
from cvt_cli.model import weights
from cvt_cli.spec.config import Size
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.variants import VARIANTS
from tests_shared import CHELSEA, TINY, golden, golden_input, golden_model

transformers.logging.set_verbosity_error()

NAMES = Labels(tuple("abcdefghij"))


@pytest.mark.parametrize(
    "variant", ["nano", "13", "21", pytest.param("w24", marks=pytest.mark.slow)]
)
def test_transformers_loads_a_written_folder_with_nothing_missing(
    tmp_path: Path, variant: str
) -> None:
    config = VARIANTS[variant].config.with_classes(10)
    weights.save(tmp_path, golden_model(config), NAMES, Preprocessing(224, 224, "crop"), "")

    model, info = CvtForImageClassification.from_pretrained(tmp_path, output_loading_info=True)

    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.id2label == dict(enumerate(NAMES.names))


def test_both_compute_the_same_when_the_activation_is_the_same(tmp_path: Path) -> None:
    ours = golden_model(TINY)
    weights.save(tmp_path, ours, NAMES, Preprocessing(64, 64, "crop"), "")
    theirs = CvtForImageClassification.from_pretrained(tmp_path).eval()
    exact = weights.load(tmp_path, activation="gelu").model
    batch = golden_input(2, 64, 64)

    with torch.inference_mode():
        assert (exact(batch) - theirs(batch).logits).abs().max() < 5e-5
        assert (ours(batch) - theirs(batch).logits).abs().max() > 1e-3


def test_a_folder_saved_by_transformers_gives_its_logits(tmp_path: Path) -> None:
    file = golden("hf-tiny-123")
    config = CvtConfig(**{k: v for k, v in file["config"].items() if k != "model_type"})
    config.num_labels = 1000
    theirs = CvtForImageClassification(config).eval()
    official = golden_model(TINY.with_classes(1000)).state_dict()
    names = {theirs_name: ours for theirs_name, _, _, ours in file["state_dict"]}
    theirs.load_state_dict({name: official[ours] for name, ours in names.items()})
    theirs.save_pretrained(tmp_path)

    loaded = weights.load(tmp_path, size=Size(64, 64))

    case = file["cases"][0]
    with torch.inference_mode():
        logits = loaded.model(golden_input(1, case["height"], case["width"]))[0]
    wanted = torch.tensor(case["logits"], dtype=torch.float64)
    assert (logits - wanted).abs().max() < 5e-5
    assert any("`gelu` is assumed" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(224, 224, "crop"),
        Preprocessing(32, 32, "crop", crop_pct=1.0),
        Preprocessing(384, 384, "squash"),
        Preprocessing(64, 96, "squash"),
        Preprocessing(224, 160, "crop", interpolation="bilinear"),
    ],
    ids=Preprocessing.describe,
)
def test_its_image_processor_reads_our_preprocessing(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    weights.save(tmp_path, golden_model(TINY), NAMES, preprocessing, "")
    image = decode.load(CHELSEA, exif=False)

    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(
        image, return_tensors="np"
    )["pixel_values"][0]

    ours = transform.preprocess(image, preprocessing)
    assert theirs.shape == ours.shape
    # A grey level is 1/255 over the standard deviation, some 0.017.
    assert abs(theirs - ours).max() < 0.036
    assert weights.load(tmp_path).preprocessing == preprocessing
