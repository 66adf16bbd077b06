"""Every layout loads, strictly and without running anything; what is wrong is named."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cvt_cli.base.errors import CheckpointError, ConfigError, CvtError, UsageError
from cvt_cli.checkpoints.names import to_reference, to_transformers
from cvt_cli.model import weights
from cvt_cli.spec import labels
from cvt_cli.spec.config import Size
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import find
from cvt_cli.spec.variants import VARIANTS
from tests_shared import (
    CHELSEA,
    TINY,
    as_transformers_saves,
    change_config,
    golden,
    golden_input,
    golden_model,
    golden_state,
)

NANO = VARIANTS["nano"].config
NAMES = Labels(tuple("abcdefghij"))
SQUARE = Preprocessing(64, 64, "crop")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder as this tool writes it, with golden weights."""
    weights.save(tmp_path / "model", golden_model(TINY), NAMES, SQUARE, "# card\n")
    return tmp_path / "model"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(golden_input(2, 64, 64))


@pytest.mark.parametrize("file", ["hf-tiny-123", "hf-cvt-13"])
def test_names_translate_into_the_transformers_layout_and_back(file: str) -> None:
    for theirs, _, _, ours in golden(file)["state_dict"]:
        assert to_transformers(ours) == theirs
        assert to_reference(theirs) == ours


def test_a_saved_folder_loads_to_the_same_bits(folder: Path) -> None:
    loaded = weights.load(folder)

    assert loaded.labels == NAMES
    assert loaded.preprocessing == SQUARE
    assert loaded.model.config == TINY
    assert loaded.notes == ()
    assert torch.equal(logits(loaded.model), logits(golden_model(TINY)))


def test_all_files_of_a_saved_folder_are_equally_readable(folder: Path) -> None:
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_the_weights_file_of_a_folder_is_read_with_its_config(folder: Path) -> None:
    assert weights.load(folder / "model.safetensors").labels == NAMES


def test_the_pickle_of_a_folder_is_read_with_its_config_too(folder: Path) -> None:
    state = {to_transformers(n): t for n, t in golden_state(TINY).items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    assert weights.load(folder / "pytorch_model.bin").labels == NAMES


def test_half_precision_is_widened_and_small_tensors_keep_theirs(tmp_path: Path) -> None:
    weights.save(tmp_path / "m", golden_model(TINY), NAMES, SQUARE, "", half=True)

    state = weights.load(tmp_path / "m").model.state_dict()

    assert {t.dtype for t in state.values()} == {torch.float32, torch.int64}
    name = "stage0.blocks.0.attn.conv_proj_q.bn.running_var"
    assert torch.equal(state[name], golden_state(TINY)[name])


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_an_original_state_dict_loads(
    tmp_path: Path, wrap: str | None, prefix: str, legacy: bool
) -> None:
    state: dict[str, object] = {prefix + n: t for n, t in golden_state(NANO).items()}
    path = tmp_path / "mine.pth"
    torch.save(
        {wrap: state, "epoch": 3} if wrap else state,
        path,
        _use_new_zipfile_serialization=not legacy,
    )

    loaded = weights.load(path, size=Size(64, 64))

    assert torch.equal(logits(loaded.model), logits(golden_model(NANO)))
    assert loaded.preprocessing == VARIANTS["nano"].preprocessing.with_size(Size(64, 64))
    assert loaded.labels == labels.unnamed(10)
    assert "has no class names: its 10 classes" in loaded.notes[0]


def test_an_original_file_name_tells_size_and_classes(tmp_path: Path) -> None:
    path = tmp_path / "CvT-13-384x384-IN-22k.pth"
    torch.save(golden_state(VARIANTS["13"].config), path)

    loaded = weights.load(path, find(path.name))

    assert loaded.preprocessing == Preprocessing(384, 384, "squash")
    assert loaded.labels == labels.imagenet()
    assert loaded.model.config == VARIANTS["13"].config


def test_an_unknown_state_dict_needs_its_input_size(tmp_path: Path) -> None:
    torch.save(golden_state(NANO), tmp_path / "mine.pth")

    with pytest.raises(UsageError, match="is not a known file name") as caught:
        weights.load(tmp_path / "mine.pth")

    assert "--res" in caught.value.hint


@pytest.mark.parametrize("transform", [lambda name: name, to_transformers])
def test_a_bare_safetensors_file_loads_in_both_layouts(tmp_path: Path, transform) -> None:
    save_file({transform(n): t for n, t in golden_state(NANO).items()}, tmp_path / "m.safetensors")

    loaded = weights.load(tmp_path / "m.safetensors", size=Size(64, 64), activation="quick_gelu")

    assert torch.equal(logits(loaded.model), logits(golden_model(NANO)))


def test_a_folder_with_a_pickle_in_place_of_safetensors_loads(folder: Path) -> None:
    state = {to_transformers(n): t for n, t in golden_state(TINY).items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    assert torch.equal(logits(weights.load(folder).model), logits(golden_model(TINY)))


def test_large_weights_stay_memory_mapped_and_are_never_initialised(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def initialised(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weight was initialised")

    original = torch.nn.init.kaiming_uniform_

    def only_meta(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return original(tensor, *args, **kwargs) if tensor.is_meta else initialised()

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", only_meta)
    model = weights.load(folder).model

    maps = Path("/proc/self/maps")
    assert not any(parameter.is_meta for parameter in model.parameters())
    if maps.exists():
        assert str(folder / "model.safetensors") in maps.read_text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("head.bias"), "missing `head.bias`"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected `extra`"),
        (
            lambda s: s.update({"norm.weight": torch.zeros(3)}),
            r"`norm.weight` has shape \[3\], not \[160\]",
        ),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("stage1.blocks.1.attn")],
            "26 of its tensors differ: missing .* and 21 more",
        ),
    ],
    ids=["missing", "unexpected", "shape", "many"],
)
def test_every_tensor_is_accounted_for(tmp_path: Path, change, named: str) -> None:
    state = golden_state(NANO)
    change(state)
    torch.save(state, tmp_path / "m.pth")

    with pytest.raises(CheckpointError, match=named) as caught:
        weights.load(tmp_path / "m.pth", size=Size(32, 32))

    assert str(tmp_path / "m.pth") in str(caught.value)


def test_another_network_is_not_taken_for_a_cvt(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")

    with pytest.raises(CheckpointError, match="is not a CvT: its 1 tensors"):
        weights.load(tmp_path / "resnet.pth", size=Size(224, 224))


def test_tensors_of_the_right_names_and_wild_shapes_are_refused(tmp_path: Path) -> None:
    odd = {"stage0.patch_embed.proj.weight": torch.zeros(()), "head.weight": torch.zeros(3)}
    torch.save(odd, tmp_path / "odd.pth")

    with pytest.raises(CheckpointError, match="is not a CvT: its 2 tensors"):
        weights.load(tmp_path / "odd.pth", size=Size(224, 224))


def test_a_cvt_of_unknown_width_needs_a_config(tmp_path: Path) -> None:
    torch.save(golden_state(TINY), tmp_path / "tiny.pth")

    with pytest.raises(CheckpointError, match=r"widths \[16, 32, 64\] and depths \[1, 2, 3\]"):
        weights.load(tmp_path / "tiny.pth", size=Size(64, 64))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))


def damaged(kind: str, path: Path) -> None:
    state = golden_state(NANO)
    torch.save(state, path)
    whole = path.read_bytes()
    if kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "legacy cut":
        torch.save(state, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "html":
        path.write_text("<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "evil":
        torch.save({**state, "evil": _Evil()}, path)
    elif kind == "evil legacy":
        path.write_bytes(pickle.dumps({"evil": _Evil()}))
    elif kind == "number":
        torch.save({**state, "epoch": 3}, path)
    elif kind == "average":
        torch.save({"model": state, "epoch": 3, "model_ema": dict(state)}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "photos":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("photos/a.jpg", b"\xff\xd8")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "damaged or cut short"),
        ("legacy cut", "damaged or cut short"),
        ("empty", r"is empty \(0 bytes\)"),
        ("html", "is not a checkpoint: it begins with '<!DOCTYPE html>"),
        ("text", "is not a checkpoint: it begins with 'version"),
        ("evil", "holds more than tensors, and was not run"),
        ("evil legacy", "holds more than tensors, and was not run"),
        ("number", "`epoch` is a int, not a tensor"),
        ("average", "holds 2 networks: `model`, `model_ema`; accepted is a file with one"),
        ("list", "holds a list, not a state dict"),
        ("photos", r"is an archive of other files \(photos/a.jpg\), not a checkpoint"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged(kind, tmp_path / "m.pth")

    with pytest.raises(CheckpointError, match=message) as caught:
        weights.load(tmp_path / "m.pth", size=Size(32, 32))

    assert str(tmp_path / "m.pth") in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("length", [0, 4, 100, 50_000])
def test_a_cut_safetensors_file_is_refused(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(CheckpointError, match="empty|cut short"):
        weights.load(folder)


def test_a_html_page_saved_as_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<!DOCTYPE html>" * 10)

    with pytest.raises(CheckpointError, match="not a safetensors file"):
        weights.load(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "vit"}, CheckpointError, "a model of type 'vit'; accepted is 'cvt'"),
        ({"qkv_projection_method": ["avg"] * 3}, ConfigError, r"`qkv_projection_method` is \['avg"),
        ({"cls_token": [True] * 3}, ConfigError, "`cls_token` is"),
        ({"activation": "relu"}, ConfigError, "`activation` is 'relu'; accepted are `quick_gelu`"),
        ({"embed_dim": [16, 32]}, ConfigError, "one value per stage"),
        ({"num_heads": [3, 2, 4]}, ConfigError, "`width` 16 cannot be split into 3 heads"),
        ({"num_channels": 1}, ConfigError, "`num_channels` is 1"),
        ({"mlp_ratio": ["4"] * 3}, ConfigError, "holds a value of the wrong kind"),
        ({"drop_path_rate": [None] * 3}, ConfigError, "holds a value of the wrong kind"),
        ({"id2label": ["a", "b"]}, ConfigError, "holds a value of the wrong kind"),
        ({"id2label": {"1": "a"}}, ConfigError, "not numbered from 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_no_published_cvt_has_is_refused_by_name(
    folder: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(error, match=message) as caught:
        weights.load(folder)

    assert str(path) in str(caught.value)


def test_a_preprocessing_file_with_odd_values_is_named(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    kind = {"image_processor_type": "CLIPImageProcessor"}
    odd = {**kind, "do_center_crop": True, "size": {"shortest_edge": 0}, "crop_size": 64}
    path.write_text(json.dumps(odd))

    with pytest.raises(ConfigError, match="preprocessor_config.json` holds a value of the wrong"):
        weights.load(folder)


def test_a_wrong_config_beside_right_weights_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"depth": [1, 2, 4]}))

    with pytest.raises(CheckpointError, match="config.json` describes: 34 of its tensors differ"):
        weights.load(folder)


def test_a_folder_without_weights_or_config_says_what_it_holds(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither `model.safetensors` nor"):
        weights.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="the folder holds README.md, preprocessor_config"):
        weights.load(folder)


def test_a_folder_that_does_not_state_its_activation_is_taken_as_exact_gelu(
    tmp_path: Path,
) -> None:
    folder = tmp_path
    as_transformers_saves(folder, VARIANTS["13"].config)

    guessed = weights.load(folder)
    published = weights.load(folder, find("cvt-13"))
    overruled = weights.load(folder, activation="quick_gelu")

    assert guessed.model.config.activation == "gelu"
    assert "`gelu` is assumed" in guessed.notes[0] and "--activation" in guessed.notes[0]
    assert published.model.config.activation == "quick_gelu"
    assert overruled.model.config.activation == "quick_gelu" and not overruled.notes


def test_the_wrong_size_beside_a_published_checkpoint_is_overruled(tmp_path: Path) -> None:
    as_transformers_saves(tmp_path, VARIANTS["13"].config)

    loaded = weights.load(tmp_path, find("microsoft/cvt-13-384-22k"))

    assert loaded.preprocessing == Preprocessing.published(384, 384)
    assert "gives 224x224 pixels, but cvt-13-384-22k takes 384" in loaded.notes[0]
    asked = weights.load(tmp_path, find("cvt-13-384-22k"), size=Size(224, 224))
    assert (asked.preprocessing.height, asked.preprocessing.resize) == (224, "crop")


def test_a_replaced_head_keeps_the_rest(folder: Path) -> None:
    loaded = weights.load(folder)

    replaced = weights.replace_head(loaded.model, 3, seed=0)

    assert logits(replaced).shape == (2, 3)
    with torch.inference_mode():
        batch = golden_input(1, 64, 64)
        assert torch.equal(replaced.forward_features(batch), loaded.model.forward_features(batch))


def test_a_card_never_stands_beside_weights_that_it_does_not_tell_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def full(*_: object, **named: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(CvtError, match="the disk is full"):
        weights.save(folder, golden_model(TINY), NAMES, SQUARE, "# of the next epoch")

    assert (folder / "model.safetensors").read_bytes() == before
    assert not (folder / "README.md").exists()


def test_an_interrupted_save_leaves_the_old_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    shutil.copytree(folder, folder.with_name("copy"))

    with pytest.raises(RuntimeError, match="stopped"):
        with weights.files.replacing(folder / "model.safetensors") as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("stopped")

    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        p.name for p in folder.with_name("copy").iterdir()
    )


# --- what the command line says of a stranger's files


LEMMAS = [line.split("\t")[3] for line in labels._IMAGENET.read_text().splitlines()[1:]]
"""Class names as the hub's repositories have them: "tench, Tinca tinca"."""


def answers(cvt, folder: Path) -> dict[int, dict[str, object]]:
    """What is answered for each class of a model."""
    result = cvt("predict", CHELSEA, "--model", folder, "--json", "--top-k", 1000)
    return {p["index"]: p for p in result.json["results"][0]["predictions"]}


def test_classes_are_called_as_the_checkpoint_says_and_have_wnids_where_they_spell_one(
    cvt, tmp_path: Path
) -> None:
    model, size = golden_model(TINY.with_classes(1000)), Preprocessing(64, 64, "crop")
    own = [f"part {index}" if index < 40 else name for index, name in enumerate(LEMMAS)]
    own[657], own[744] = own[744], own[657]  # "missile" and "projectile, missile"
    own[100] = own[100].upper().replace(" ", "_")
    weights.save(tmp_path, model, Labels(tuple(own)), size, "")

    found = answers(cvt, tmp_path)

    wnids = labels.imagenet_wnids()
    others = {*range(40), 657, 744}
    assert [found[index]["label"] for index in range(1000)] == own
    assert [found[index]["wnid"] for index in range(1000)] == [
        None if index in others else wnid for index, wnid in enumerate(wnids)
    ]


def test_imagenets_classes_keep_their_short_names(cvt, tmp_path: Path) -> None:
    model, size = golden_model(TINY.with_classes(1000)), Preprocessing(64, 64, "crop")
    weights.save(tmp_path, model, Labels(tuple(LEMMAS)), size, "")

    found = answers(cvt, tmp_path)

    assert tuple(found[index]["label"] for index in range(1000)) == labels.imagenet().names
    assert tuple(found[index]["wnid"] for index in range(1000)) == labels.imagenet_wnids()


def test_real_labels_are_not_counted_for_a_list_that_is_not_imagenets(
    cvt, tmp_path: Path, signdigits: Path
) -> None:
    names = ("own", *LEMMAS[1:990], *(str(digit) for digit in range(10)))
    model = golden_model(TINY.with_classes(1000))
    weights.save(tmp_path / "m", model, Labels(names), Preprocessing(64, 64, "crop"), "")
    (tmp_path / "real.json").write_text("[]")

    result = cvt(
        "evaluate", "--data", signdigits, "--model", tmp_path / "m",
        "--real", tmp_path / "real.json",
    )  # fmt: skip

    assert result.exit_code == 2
    assert "--real needs ImageNet's classes" in result.stderr


def test_a_bare_file_of_nano_is_fed_as_its_folder_is(cvt, tmp_path: Path) -> None:
    folder = find("cvt-nano-cifar10").embedded
    bare = shutil.copy(folder / "model.safetensors", tmp_path / "mine.safetensors")

    def run(*arguments: object) -> object:
        return cvt("predict", CHELSEA, "--json", *arguments)

    whole = run("--model", folder).json
    alone = run("--model", bare, "--res", 32, "--activation", "quick_gelu").json
    assert alone["preprocessing"] == whole["preprocessing"]
    scores = [
        {p["index"]: p["score"] for p in document["results"][0]["predictions"]}
        for document in (alone, whole)
    ]
    assert scores[0] == scores[1]

    by_its_names = run("--model", bare, "--res", 32)
    assert by_its_names.json["activation"] == "gelu"
    assert "`mine.safetensors` has the tensor names of transformers: `gelu`" in (
        by_its_names.stderr
    )


@pytest.mark.parametrize("file", ["m.pth", "m.safetensors"])
@pytest.mark.parametrize("second", ["module.head.bias", "classifier.bias"])
def test_a_tensor_under_two_names_is_refused_with_both(
    cvt, tmp_path: Path, file: str, second: str
) -> None:
    state = golden_state(NANO)
    first = "head.bias"
    if second == "classifier.bias":
        state = {to_transformers(name): t for name, t in state.items()}
        first, second = second, first
    state[second] = torch.zeros(10)
    save = torch.save if file.endswith(".pth") else save_file
    save(state, tmp_path / file)

    commands = [("predict", CHELSEA, "--res", 32)]
    if file.endswith(".safetensors"):
        commands.append(("flops",))
    for command in commands:
        result = cvt(*command, "--model", tmp_path / file)
        assert result.exit_code == 1
        assert f"has the same tensor under two names, `{first}` and `{second}`" in result.stderr


@pytest.mark.parametrize(
    "change",
    [lambda t: t.to(torch.int8), lambda t: t.to_sparse(), lambda t: t.to(torch.complex64)],
    ids=["integers", "sparse", "complex"],
)
def test_weights_that_are_no_plain_numbers_are_no_weights(folder: Path, change) -> None:
    state = {to_transformers(n): t for n, t in golden_state(TINY).items()}
    state["classifier.weight"] = change(state["classifier.weight"])
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="`head.weight` holds no plain floating-point"):
        weights.load(folder)


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "1": "b", "01": "c"}}, "class 1 twice, under '1' and '01'"),
        ({"id2label": {"0": "a", "2": "c"}}, "it has class 2 and no class 1"),
        ({"id2label": {"0": "a", "-1": "b"}}, "`id2label` has the key '-1'"),
        ({"id2label": {"0": "a", "1": 7}}, "has 7 as the name of class 1"),
        ({"id2label": None, "num_labels": 10**12}, "a head of 1000000000000 classes; accepted"),
        ({"depth": [10**9, 2, 3]}, "`depth` is 1000000000; it must be a positive integer of at"),
        ({"embed_dim": [16, 32, 10**9]}, "`width` is 1000000000; it must be a positive integer"),
        ({"mlp_ratio": [1e308, 4, 4]}, "`mlp_ratio` is 1e+308; it must be positive, and at most"),
        ({"patch_stride": [10**6, 2, 2]}, "`stride` is 1000000; it must be"),
        ({"patch_sizes": [64, 64, 64], "patch_padding": [0, 0, 0]}, "too small for this network"),
        ({"embed_dim": [16] * 10**5}, "it must be a list with one value per stage"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_no_network_has_is_refused_before_anything_is_built(
    cvt, folder: Path, change: dict[str, object], message: str
) -> None:
    change_config(folder, **change)

    for command in ("info", "predict"):
        arguments = (CHELSEA, "--model", folder) if command == "predict" else (folder,)
        result = cvt(command, *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert str(folder / "config.json") in result.stderr or "too small" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"shortest_edge": 20_000}}, "`height` is 20000; it must be an integer of at"),
        ({"crop_pct": 5e-324}, "`crop_pct` is 5e-324: the shorter side would be resized to more"),
        ({"image_mean": [float("nan"), 0, 0]}, "`mean` is (nan, 0, 0); it must be 3 numbers"),
        ({"image_std": [1, float("inf"), 1]}, "`std` is (1, inf, 1); it must be 3 numbers"),
        ({"image_std": [1, 1, 10**400]}, "`std` is (1, 1, inf)"),
        ({"rescale_factor": float("nan")}, "`rescale_factor` is nan"),
        ({"size": {"height": [], "width": 64}}, "`size` is {'height': [], 'width': 64}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_preprocessing_that_nobody_uses_is_refused(
    cvt, folder: Path, change: dict[str, object], message: str
) -> None:
    change_config(folder, "preprocessor_config.json", **change)

    result = cvt("info", folder)

    assert result.exit_code == 1
    assert message in result.stderr and "preprocessor_config.json" in result.stderr


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_json_that_would_take_all_of_the_stack_is_no_traceback(
    cvt, folder: Path, file: str
) -> None:
    (folder / file).write_text(NESTED)

    result = cvt("info", folder)

    assert result.exit_code == 1
    assert f"`{folder / file}` cannot be read as JSON: it is nested too deeply" in result.stderr


def test_a_config_of_that_kind_in_the_hubs_cache_is_passed_over(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--body" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(NESTED)

    assert cvt("cache", "list", "--json").json == []


@pytest.mark.parametrize(
    "header",
    [
        NESTED,
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}',
    ],
    ids=["nested", "twice", "negative", "infinite"],
)
def test_a_header_that_is_none_is_refused(cvt, tmp_path: Path, header: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))

    for command in (("flops", "--model"), ("predict", CHELSEA, "--res", 32, "--model")):
        result = cvt(*command, path)
        assert result.exit_code == 1
        assert f"`{path}` is not a safetensors file: its header cannot be read" in result.stderr


def test_a_head_of_a_trillion_classes_is_refused_by_its_header(cvt, tmp_path: Path) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in golden_state(NANO).items()}
    shapes["head.weight"] = [10**12, 160]
    entries = {n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}
    header = json.dumps(entries).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)

    result = cvt("flops", "--model", path)

    assert result.exit_code == 1
    assert f"`{path}`: `num_classes` is 1000000000000; it must be" in result.stderr


def test_a_pipe_in_place_of_a_config_is_not_waited_for(cvt, folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")

    result = cvt("info", folder)

    assert result.exit_code == 1
    assert f"`{folder / 'config.json'}` is not a regular file" in result.stderr


def test_a_byte_order_mark_before_a_config_changes_nothing(cvt, folder: Path) -> None:
    before = cvt("info", folder, "--json").json
    for name in ("config.json", "preprocessor_config.json", "README.md"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())

    assert cvt("info", folder, "--json").json == before


def test_a_card_in_another_encoding_is_left_out(cvt, folder: Path) -> None:
    (folder / "README.md").write_bytes("# Modèle\n".encode("latin-1"))

    result = cvt("info", folder, "--json")

    assert result.exit_code == 0 and result.json["card"] is None


def test_what_the_system_does_not_let_us_read_is_a_sentence(cvt, tmp_path: Path) -> None:
    # Its first byte is an error to read, for the superuser too, whom permissions do not stop.
    unreadable = tmp_path / "m.safetensors"
    unreadable.symlink_to("/proc/self/mem")
    if not unreadable.is_file():
        pytest.fail("this system has no /proc/self/mem")

    result = cvt("flops", "--model", unreadable)

    assert result.exit_code == 1
    assert f"`{unreadable}` cannot be read: Input/output error" in result.stderr
