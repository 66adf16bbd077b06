"""Command lines as other tools take them are answered with the one that is right here, not run."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from cvt_cli.base.errors import UsageError
from cvt_cli.cli import app
from cvt_cli.commands import habits
from tests_shared import CHELSEA

HABITS = [
    # what is typed; the line that is right here
    ("help", "--help"),
    ("help predict", "predict --help"),
    ("version", "--version"),
    ("photo.jpg", "predict photo.jpg"),
    ("photo.jpg other.png --topk 3", "predict photo.jpg other.png --top-k 3"),
    ("https://example.org/x", "predict https://example.org/x"),
    ("list", "models"),
    ("classify a.jpg -k 3", "predict a.jpg -k 3"),
    # Ultralytics
    ("classify train data=d epochs=3 imgsz=64", "finetune --data d --epochs 3 --res 64"),
    ("train 'data=my pictures' epochs=3", "finetune --data 'my pictures' --epochs 3"),
    ("mode=train task=classify data=d", "finetune --data d"),
    ("classify predict model=m.pth source=a.jpg", "predict --model m.pth a.jpg"),
    ("val", "evaluate DATA"),
    ("test", "evaluate DATA"),
    ("train", "finetune DATA"),
    ("train d", "finetune d"),
    ("train --resume_from_checkpoint r", "finetune --resume r"),
    ("export format=onnx", "export --format onnx MODEL"),
    ("val data=d model=m batch=4", "evaluate --data d --model m --batch-size 4"),
    ("predict source=a.jpg model=m device=0", "predict a.jpg --model m --device cuda:0"),
    ("finetune data=d pretrained=True amp=True", "finetune --data d --precision bf16"),
    ("finetune --data d half=False", "finetune --data d"),
    (
        "export model=m format=engine half=True",
        "export --model m --format onnx --precision fp16",
    ),
    # one option by other names
    *(
        (f"predict a.jpg {spelling} 64", "predict a.jpg --res 64")
        for spelling in (
            "--imgsz",
            "--img-size",
            "--image-size",
            "--image_size",
            "--input-size",
            "--size",
            "--IMGSZ",
        )
    ),
    *(
        (f"predict a.jpg {spelling} w.pth", "predict a.jpg --model w.pth")
        for spelling in ("--weights", "--checkpoint", "--ckpt", "--model_name_or_path")
    ),
    *(
        (f"predict {spelling} a.jpg", "predict a.jpg")
        for spelling in ("--source", "--input", "--image", "--images", "--data")
    ),
    ("predict --source=a.jpg", "predict a.jpg"),
    ("predict a.jpg --imgsz 224 320", "predict a.jpg --res 224x320"),
    ("predict a.jpg --img-size=224,320", "predict a.jpg --res 224x320"),
    ("predict a.jpg --res 224,224 --topk 3", "predict a.jpg --res 224 --top-k 3"),
    ("predict a.jpg --input-size 3 224 224", "predict a.jpg --res 224"),
    ("predict a.jpg --topk", "predict a.jpg --top-k N"),
    ("predict a.jpg --results-file a.csv", "predict a.jpg --output a.csv"),
    ("evaluate d --csv a.csv", "evaluate d --predictions a.csv"),
    ("predict a.jpg --batch 8 --gpu 0", "predict a.jpg --batch-size 8 --device cuda:0"),
    ("predict a.jpg --device 0", "predict a.jpg --device cuda:0"),
    ("predict a.jpg --cpu", "predict a.jpg --device cpu"),
    # timm, torchvision
    (
        "train --data d --opt sgd --sched cosine --amp --pretrained --num-classes 3",
        "finetune --data d --precision bf16",
    ),
    ("finetune --data-path d -j 8 --wd 0.1", "finetune --data d --workers 8 --weight-decay 0.1"),
    ("finetune --data d --lr-warmup-epochs 2", "finetune --data d --warmup-epochs 2"),
    ("evaluate --data d --crop-pct 0.95 --interpolation bicubic", "evaluate --data d"),
    ("train --data-dir d --input-size 64 -b 8", "finetune d --res 64 -b 8"),
    ("predict a.jpg --topk 5 --output-type csv", "predict a.jpg --top-k 5"),
    ("predict --fast-norm --unknown a.jpg --topk 5", "predict a.jpg --top-k 5"),
    ("finetune d --pretrained True --lr0 0.1", "finetune d --lr 0.1"),
    ("finetune d --aa rand-m9", "finetune d --augment NAME"),
    ("train d project=p name=n", "finetune d --output p"),
    # transformers
    (
        "finetune --train_dir d --model_name_or_path m --output_dir o --do_train "
        "--num_train_epochs 3 --per_device_train_batch_size 8 --learning_rate 1e-4",
        "finetune --data d --model m --output o --epochs 3 --batch-size 8 --lr 1e-4",
    ),
    ("finetune --train_dir d/train --validation_dir d/val", "finetune --data d"),
    ("finetune d/Training/ --val-dir=d/valid -m m", "finetune d -m m"),
    ("finetune --train_dir train --validation_dir dev", "finetune --data ."),
    ("finetune --train_dir a/train --validation_dir b/val", "finetune --data a/train"),
    ("finetune --train_dir a/x --validation_dir a/val", "finetune --data a/x"),
    # formats that come of one that is written here
    *(
        (f"export m --output x.onnx --format {form}", "export m --output x.onnx --format onnx")
        for form in ("engine", "tensorrt", "tflite")
    ),
    ("export m --output x.pt2 --format coreml", "export m --output x.pt2 --format pt2"),
    ("export m --output x.pt2 --format torchscript", "export m --output x.pt2 --format pt2"),
    ("export m --output x.engine", "export m --output x.onnx"),
    (
        "export m --layout reference --output x.pth",
        "export m --layout reference --output x.safetensors",
    ),
    ("cache clear", "cache remove --all"),
    ("cache ls", "cache list"),
    ("--json flops", "flops --json"),
    ("-v", "--version"),
]


@pytest.mark.parametrize(("typed", "ours"), HABITS, ids=[typed for typed, _ in HABITS])
def test_a_habit_of_another_tool_is_answered_with_the_line_that_is_right_here(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, ours: str
) -> None:
    monkeypatch.chdir(tmp_path)

    result = cvt(*shlex.split(typed))

    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(rf"error: .+\n\nhint: cvt {re.escape(ours)}\n", result.stderr), result
    assert not list(tmp_path.iterdir())


def test_what_the_line_leaves_out_is_said_with_the_reason(cvt) -> None:
    said = cvt(*"finetune --data d --opt sgd --sched cosine --mixup 0.2 --frobnicate 3".split())

    assert (
        "`--opt sgd` and `--sched cosine` and `--mixup 0.2` left out: it is part of" in said.stderr
    )
    assert "`--frobnicate 3` left out: there is no such option" in said.stderr
    said = cvt(*"finetune --train_dir d/train --validation_dir d/val".split())
    assert "`d/train` and `d/val` are parts of `d`, which is named here" in said.stderr
    assert "left out" not in said.stderr
    said = cvt(*"finetune --train_dir a/train --validation_dir b/val".split())
    assert "`--validation_dir b/val` left out: validation images come from" in said.stderr
    said = cvt(*"export m --output x.onnx --format engine".split())
    assert "`trtexec --onnx=FILE.onnx --saveEngine=FILE.engine`" in said.stderr


def test_an_option_that_no_tool_has_is_told_of_as_before(cvt) -> None:
    said = cvt(*"predict a.jpg --frobnicate".split())

    assert said.exit_code == 2 and "No such option: --frobnicate" in said.stderr


def test_files_that_look_like_settings_are_files(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("epochs=3").write_bytes(CHELSEA.read_bytes())
    Path("model=m.jpg").write_bytes(CHELSEA.read_bytes())

    said = cvt("predict", "epochs=3", "model=m.jpg", "--model", "cvt-nano-cifar10", "--jsonl")

    assert said.exit_code == 0 and len(said.stdout.splitlines()) == 2


GROUP = get_command(app)


@pytest.mark.parametrize("command", sorted(set(habits.SPELLINGS) - {""}))
def test_every_spelling_of_the_table_leads_to_an_option_that_there_is(command: str) -> None:
    """A line of the table whose option was renamed would send users astray."""
    known = GROUP.commands[command]
    names = {name for p in known.params for name in p.opts}
    arguments = {
        str(p.metavar).strip("[].") for p in known.params if p.param_type_name == "argument"
    }

    for ours in habits.SPELLINGS.get(command, {}).values():
        assert ours.split()[0] in names | arguments
    theirs = {*habits.SPELLINGS.get(command, {})}
    theirs |= {
        name.strip("=")
        for listed in habits.WITHOUT.get(command, {}).values()
        for name in listed.split()
    }
    assert not [name for name in theirs if f"--{name}" in names]


def test_every_option_of_all_commands_in_the_table_is_one_of_some() -> None:
    names = {n for c in GROUP.commands.values() for p in c.params for n in p.opts}

    assert {ours.split()[0] for ours in habits.SPELLINGS[""].values()} <= names
    assert set(habits.COMMANDS.values()) <= set(GROUP.commands)
    assert not set(habits.COMMANDS) & set(GROUP.commands)


def test_words_of_the_table_are_written_once() -> None:
    for table in habits.WITHOUT.values():
        words = " ".join(table.values()).replace("=", "").split()
        assert sorted(words) == sorted(set(words))


def test_the_line_is_quoted_for_the_shell() -> None:
    error = habits.explain(GROUP, ["train", "data=it's mine", "--weights", "a b.pth"])

    assert isinstance(error, UsageError)
    assert str(error.hint) == "cvt finetune --data 'it'\"'\"'s mine' --model 'a b.pth'"
