"""Every layout loads, strictly and without running anything; what is wrong is named."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cvt_cli import labels, layouts, weights
from cvt_cli.checkpoints import find
from cvt_cli.config import VARIANTS
from cvt_cli.errors import CheckpointError, ConfigError, UsageError
from cvt_cli.labels import Labels
from cvt_cli.preprocessing import Preprocessing
from tests_shared import TINY, golden, golden_input, golden_model, golden_state

NANO = VARIANTS["nano"]
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
        assert layouts.to_transformers(ours) == theirs
        assert layouts.to_reference(theirs) == ours


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

    loaded = weights.load(path, size=(64, 64))

    assert torch.equal(logits(loaded.model), logits(golden_model(NANO)))
    assert loaded.preprocessing == Preprocessing.published(64, 64)
    assert loaded.labels == labels.unnamed(10)
    assert "does not name its 10 classes" in loaded.notes[0]


def test_an_original_file_name_tells_size_and_classes(tmp_path: Path) -> None:
    path = tmp_path / "CvT-13-384x384-IN-22k.pth"
    torch.save(golden_state(VARIANTS["13"]), path)

    loaded = weights.load(path, find(path.name))

    assert loaded.preprocessing == Preprocessing(384, 384, "squash")
    assert loaded.labels == labels.imagenet()
    assert loaded.model.config == VARIANTS["13"]


def test_an_unknown_state_dict_needs_its_input_size(tmp_path: Path) -> None:
    torch.save(golden_state(NANO), tmp_path / "mine.pth")

    with pytest.raises(UsageError, match="does not say its input size") as caught:
        weights.load(tmp_path / "mine.pth")

    assert "--res" in caught.value.hint


@pytest.mark.parametrize("transform", [lambda name: name, layouts.to_transformers])
def test_a_bare_safetensors_file_loads_in_both_layouts(tmp_path: Path, transform) -> None:
    save_file({transform(n): t for n, t in golden_state(NANO).items()}, tmp_path / "m.safetensors")

    loaded = weights.load(tmp_path / "m.safetensors", size=(64, 64))

    assert torch.equal(logits(loaded.model), logits(golden_model(NANO)))


def test_a_folder_with_a_pickle_in_place_of_safetensors_loads(folder: Path) -> None:
    state = {layouts.to_transformers(n): t for n, t in golden_state(TINY).items()}
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
        weights.load(tmp_path / "m.pth", size=(32, 32))

    assert str(tmp_path / "m.pth") in str(caught.value)


def test_another_network_is_not_taken_for_a_cvt(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")

    with pytest.raises(CheckpointError, match="no CvT: among its 1 tensors"):
        weights.load(tmp_path / "resnet.pth", size=(224, 224))


def test_tensors_of_the_right_names_and_wild_shapes_are_refused(tmp_path: Path) -> None:
    odd = {"stage0.patch_embed.proj.weight": torch.zeros(()), "head.weight": torch.zeros(3)}
    torch.save(odd, tmp_path / "odd.pth")

    with pytest.raises(CheckpointError, match="no CvT: among its 2 tensors"):
        weights.load(tmp_path / "odd.pth", size=(224, 224))


def test_a_cvt_of_unknown_width_needs_a_config(tmp_path: Path) -> None:
    torch.save(golden_state(TINY), tmp_path / "tiny.pth")

    with pytest.raises(CheckpointError, match=r"widths \[16, 32, 64\] and depths \[1, 2, 3\]"):
        weights.load(tmp_path / "tiny.pth", size=(64, 64))


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
    elif kind == "list":
        torch.save([1, 2], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "damaged or cut short"),
        ("legacy cut", "damaged or cut short"),
        ("empty", r"is empty \(0 bytes\)"),
        ("html", "is no checkpoint: it begins with '<!DOCTYPE html>"),
        ("text", "is no checkpoint: it begins with 'version"),
        ("evil", "holds more than tensors, and was not run"),
        ("evil legacy", "holds more than tensors, and was not run"),
        ("number", "`epoch` is a int, not a tensor"),
        ("list", "holds a list, not a state dict"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged(kind, tmp_path / "m.pth")

    with pytest.raises(CheckpointError, match=message) as caught:
        weights.load(tmp_path / "m.pth", size=(32, 32))

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

    with pytest.raises(CheckpointError, match="no safetensors file"):
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
    odd = {"do_center_crop": True, "size": {"shortest_edge": 0}, "crop_size": 64}
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
    model = golden_model(TINY.with_classes(1000))
    weights.save(folder, model, labels.imagenet(), Preprocessing(224, 224, "crop"), "")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["activation"]
    path.write_text(json.dumps(config))

    guessed = weights.load(folder)
    published = weights.load(folder, find("cvt-13"))
    overruled = weights.load(folder, activation="quick_gelu")

    assert guessed.model.config.activation == "gelu"
    assert "taken as `gelu`" in guessed.notes[0] and "--activation" in guessed.notes[0]
    assert published.model.config.activation == "quick_gelu"
    assert overruled.model.config.activation == "quick_gelu" and not overruled.notes


def test_the_wrong_size_beside_a_published_checkpoint_is_overruled(tmp_path: Path) -> None:
    config = VARIANTS["13"]
    wrong = Preprocessing(224, 224, "crop")
    weights.save(tmp_path, golden_model(config), labels.imagenet(), wrong, "")

    loaded = weights.load(tmp_path, find("microsoft/cvt-13-384-22k"))

    assert loaded.preprocessing == Preprocessing.published(384, 384)
    assert "gives 224x224 pixels, but cvt-13-384-22k takes 384" in loaded.notes[0]
    asked = weights.load(tmp_path, find("cvt-13-384-22k"), size=(224, 224))
    assert (asked.preprocessing.height, asked.preprocessing.resize) == (224, "crop")


def test_a_replaced_head_keeps_the_rest(folder: Path) -> None:
    loaded = weights.load(folder)

    replaced = weights.replace_head(loaded.model, 3, seed=0)

    assert logits(replaced).shape == (2, 3)
    with torch.inference_mode():
        batch = golden_input(1, 64, 64)
        assert torch.equal(replaced.forward_features(batch), loaded.model.forward_features(batch))


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
