"""What the hub is known to serve, written by the real transformers: answers as they must be.

The golden weights stand in for the published ones. The expected answers come from `independent`,
which shares no code with the package: transformers' network with QuickGELU put in, torchvision's
transforms.
"""

import io
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torchvision import transforms
from transformers import AutoImageProcessor, ConvNextImageProcessor, CvtConfig
from transformers import CvtForImageClassification as Theirs

import cvt_cli
from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.names import to_reference
from cvt_cli.model import weights
from cvt_cli.spec.labels import imagenet
from cvt_cli.spec.published import CHECKPOINTS
from fake_hub import Hub
from tests_shared import CHELSEA, TESTS, Machine, formula, golden, golden_input

transformers.logging.set_verbosity_error()

ARCHITECTURES = {
    "13": {"depth": [1, 2, 10]},
    "21": {"depth": [1, 4, 16]},
    "w24": {"embed_dim": [192, 768, 1024], "num_heads": [3, 12, 16], "depth": [2, 2, 20]},
}
"""What differs from the defaults of transformers, which are CvT-13's."""

LEMMAS = [
    line.split("\t")[3]
    for line in (TESTS.parent / "cvt_cli/data/imagenet1k.tsv").read_text().splitlines()[1:]
]
"""Class names as the hub's repositories have them: "tench, Tinca tinca"."""


class QuickGELU(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@cache
def published_model(variant: str) -> Theirs:
    """A network of transformers with the golden weights, computing exact GELU as it does."""
    config = CvtConfig(**ARCHITECTURES[variant], id2label=dict(enumerate(LEMMAS)))
    with torch.device("meta"):
        model = Theirs(config)
    golden = {
        name: torch.from_numpy(formula.weight(to_reference(name), tensor.shape).copy())
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(golden, assign=True)
    return model.eval()


@cache
def published_files(variant: str, size_said: int, folder: Path) -> dict[str, bytes]:
    """A repository in the published form: config, preprocessing, and a pickle alone."""
    model = published_model(variant)
    model.config.save_pretrained(folder)
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    preprocessing = {
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": size_said,
    }
    return {
        "config.json": (folder / "config.json").read_bytes(),
        "preprocessor_config.json": json.dumps(preprocessing).encode(),
        "pytorch_model.bin": weights.getvalue(),
        "tf_model.h5": b"not read",
    }


def independent(variant: str, size: int, photo: Path) -> list[tuple[int, float]]:
    """Index and probability of the five likeliest classes, without the package."""
    model = published_model(variant)
    replaced = [m for m in model.modules() for c in m.children() if isinstance(c, torch.nn.GELU)]
    gelus = []
    for module in replaced:
        name = next(n for n, c in module.named_children() if isinstance(c, torch.nn.GELU))
        gelus.append((module, name, getattr(module, name)))
        setattr(module, name, QuickGELU())
    resize: Any = transforms.Resize(int(size / 0.875), transforms.InterpolationMode.BICUBIC)
    if size >= 384:
        resize = transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC)
    pipeline = transforms.Compose(
        [
            resize,
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.inference_mode():
        logits = model(pipeline(Image.open(photo).convert("RGB"))[None]).logits
    for module, name, gelu in gelus:
        setattr(module, name, gelu)
    scores, indices = logits.softmax(-1)[0].topk(5)
    return list(zip(indices.tolist(), scores.tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "variant", "size", "size_said"),
    [
        ("cvt-13", "13", 224, 224),
        ("cvt-21", "21", 224, 224),
        ("cvt-13-384", "13", 384, 384),
        ("cvt-21-384", "21", 384, 384),
        ("cvt-13-384-22k", "13", 384, 224),
        ("cvt-21-384-22k", "21", 384, 384),
        pytest.param("cvt-w24-384-22k", "w24", 384, 384, marks=pytest.mark.slow),
    ],
)
def test_a_published_name_answers_as_an_independent_implementation(
    hub: Hub,
    machine: Machine,
    tmp_path: Path,
    name: str,
    variant: str,
    size: int,
    size_said: int,
) -> None:
    hub.add(f"microsoft/{name}", published_files(variant, size_said, tmp_path / "published"))

    result = machine.run("predict", CHELSEA, "--model", name, "--json")

    assert result.exit_code == 0, result.stderr
    expected = independent(variant, size, CHELSEA)
    predictions = result.json["results"][0]["predictions"]
    assert [p["index"] for p in predictions] == [index for index, _ in expected]
    assert [p["wnid"] for p in predictions] == [imagenet().wnid(index) for index, _ in expected]
    assert [p["score"] for p in predictions] == pytest.approx([s for _, s in expected], abs=1e-5)
    assert result.json["model"] == name
    assert result.json["activation"] == "quick_gelu"
    assert (result.json["preprocessing"]["height"], result.json["preprocessing"]["width"]) == (
        size,
        size,
    )
    # Our table wins over the size that one repository gives, and says so.
    overruled = f"gives {size_said}x{size_said} pixels, but {name} takes {size}" in result.stderr
    assert overruled == (size != size_said)
    if size != size_said:
        wrong = independent(variant, size_said, CHELSEA)
        assert [s for _, s in wrong] != pytest.approx([s for _, s in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "variant", "numbers"),
    [
        ("cvt-13", "13", "golden-cvt-13"),
        pytest.param("cvt-w24-384-22k", "w24", "golden-cvt-w24", marks=pytest.mark.slow),
    ],
)
def test_what_was_fetched_and_converted_gives_the_golden_logits(
    hub: Hub, machine: Machine, tmp_path: Path, name: str, variant: str, numbers: str
) -> None:
    hub.add(f"microsoft/{name}", published_files(variant, 224, tmp_path / "published"))
    machine.run("download", name)
    (folder,) = machine.hub_cache.glob("models--*/snapshots/*")
    (converted,) = machine.own_cache.rglob("*.safetensors")

    model = weights.load_checkpoint(
        Checkpoint.at(folder, CHECKPOINTS[name]), stored=converted
    ).model

    case = golden(numbers)["cases"][0]
    with torch.inference_mode():
        logits = model(golden_input(1, case["height"], case["width"]))[0]
    assert (logits - torch.tensor(case["logits"])).abs().max() < 5e-5


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody fine-tuned with transformers and put on the hub, in its own form."""
    torch.manual_seed(0)
    config = CvtConfig(
        embed_dim=[16, 32, 64],
        num_heads=[1, 2, 4],
        depth=[1, 2, 3],
        id2label={0: "cat", 1: "boats", 2: "noise"},
    )
    model = Theirs(config).train()
    processor = ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.9, resample=3)
    photos = [Image.open(TESTS / "photos" / n) for n in ("chelsea.png", "nagasaki-boats.jpg")]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8))
    images = [photo.convert("RGB") for photo in (*photos, noise)]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(25):
        model(pixels, labels=torch.arange(3)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("finetuned")
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_somebodys_fine_tuned_model_predicts_what_transformers_predicts(
    hub: Hub, machine: Machine, finetuned: Path
) -> None:
    hub.add("somebody/cats-and-boats", finetuned)
    photo = TESTS / "photos" / "nagasaki-boats.jpg"

    result = machine.run("predict", photo, "--model", "somebody/cats-and-boats", "--json")

    # Its processor with Pillow, whose resizing ours equals; torchvision's differs by a grey level.
    processor = AutoImageProcessor.from_pretrained(finetuned, backend="pil")
    inputs = processor(Image.open(photo).convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        theirs = Theirs.from_pretrained(finetuned).eval()(**inputs).logits.softmax(-1)[0]
    assert result.exit_code == 0, result.stderr
    assert result.json["activation"] == "gelu"
    assert "does not say the activation: `gelu` is assumed" in result.stderr
    ours = {p["label"]: p["score"] for p in result.json["results"][0]["predictions"]}
    names = ("cat", "boats", "noise")
    assert ours == pytest.approx(dict(zip(names, theirs.tolist(), strict=True)), abs=1e-4)
    assert max(ours, key=ours.__getitem__) == names[int(theirs.argmax())]
    wrong = machine.run(
        "predict", photo, "--model", "somebody/cats-and-boats", "--json",
        "--activation", "quick_gelu",
    )  # fmt: skip
    changed = {p["label"]: p["score"] for p in wrong.json["results"][0]["predictions"]}
    assert changed != pytest.approx(ours, abs=1e-4)


def test_of_what_transformers_has_saved_again_the_activation_is_noted_as_doubtful(
    cvt, tmp_path: Path
) -> None:
    own = Path(cvt_cli.__file__).parent / "data" / "cvt-nano-cifar10"
    Theirs.from_pretrained(own).save_pretrained(tmp_path / "saved")
    shutil.copy(own / "preprocessor_config.json", tmp_path / "saved")

    notes = [cvt("predict", CHELSEA, "--model", folder) for folder in (own, tmp_path / "saved")]
    told = cvt("predict", CHELSEA, "--model", tmp_path / "saved", "--activation", "gelu")

    said = "says `quick_gelu`, but was saved by transformers, which computes `gelu` all the same"
    assert [said in result.stderr for result in (*notes, told)] == [False, True, False]


def test_a_mean_that_a_folder_does_not_say_is_noted(tmp_path: Path) -> None:
    folder = shutil.copytree(TESTS / "kept" / "model", tmp_path / "model")
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text())
    del said["image_mean"]
    path.write_text(json.dumps(said))

    (note,) = folders.read_folder(folder).notes

    assert note.startswith(f"`{path}` has no `image_mean`: ImageNet's are assumed, where trans")
