"""What stands on the command line has an effect or is refused, and no value of it is empty."""

import re
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from cvt_cli.cli import app
from cvt_cli.commands import explain, options
from cvt_cli.spec.published import CHECKPOINTS
from tests_shared import CHELSEA

PREDICT = (
    "--model --revision --offline --res --resize --activation --top-k --threshold --exif "
    "--fast-decode "
    "--background --batch-size --workers --device --engine --precision --verbose --json --jsonl "
    "--csv --resume --parquet --html --features --output"
)
EVALUATE = (
    "--model --revision --offline --label-map --real --groups --skip-unreadable --res "
    "--resize --activation "
    "--exif --batch-size --workers --device --engine --precision --top-k --expect --predictions "
    "--report --verbose --json --split --resume --group-by --scores --confusion --card --energy"
)
EXPLAIN = (
    "--model --revision --offline --res --activation --method --target --against --top-k --score "
    "--output --html --npz --json --verbose --exif --background --device --workers --overwrite"
)
EXPORT = (
    "--format --with-preprocessing --dynamic-size --overwrite --precision --int8 --verify-data "
    "--res --resize --activation --revision --offline --json --card"
)
FINETUNE = (
    "--data-dir --val-fraction --model --revision --offline --variant --res --resize --activation "
    "--freeze "
    "--recipe --show-recipe --epochs --batch-size --accumulate --lr --warmup-epochs --weight-decay "
    "--clip --augment --class-weights --sampler --select --patience --max-time --seed --device "
    "--gpus --sync-bn --precision --checkpoint-activations --workers --resume --dry-run --output "
    "--json --strict "
    "--group-by --allow-overlap --folds --track --energy"
)
BENCHMARK = (
    "--variant --model --res --engine --precision --batch-size --against --rounds --device --plot "
    "--json --job --card --energy"
)


AND_NO_CLASSES = "--json --jsonl --csv --resume --parquet --html --top-k --threshold"


def but(effective: str, without: str) -> str:
    assert set(without.split()) <= set(effective.split())
    return " ".join(name for name in effective.split() if name not in without.split())


OPTIONS_WITH_EFFECT = [
    # A command in one of its uses, and all options that have an effect there beside what is
    # written: every other one must be refused. A new option has to be put here or be refused.
    ("predict x.jpg", PREDICT),
    ("predict x.jpg --precision int8", f"{PREDICT} --calibration --max-drop"),
    ("predict x.jpg --model cvt-nano-cifar10", but(PREDICT, "--revision")),
    ("predict x.jpg --jsonl", but(PREDICT, "--json --csv")),
    ("predict x.jpg --resume x.jsonl", but(PREDICT, "--parquet --html --features --output")),
    ("predict x.jpg --output x.csv", f"{but(PREDICT, '--features')} --overwrite"),
    (
        "predict x.jpg --features x.npz",
        f"{but(PREDICT, AND_NO_CLASSES)} --overwrite",
    ),
    ("predict x.jpg -o x.npz", f"{but(PREDICT, AND_NO_CLASSES)} --overwrite"),
    ("explain x.jpg", EXPLAIN),
    ("explain x.jpg --method layercam", f"{EXPLAIN} --stage"),
    ("explain x.jpg --json", but(EXPLAIN, "--overwrite --json")),
    ("explain x.jpg --target cat", but(EXPLAIN, "--against --top-k")),
    ("explain x.jpg --against cat,dog", but(EXPLAIN, "--target --top-k")),
    ("evaluate --data x", EVALUATE),
    ("evaluate x", EVALUATE),
    ("evaluate x.csv", f"{EVALUATE} --columns --images --separator"),
    ("evaluate x --groups x.csv", but(EVALUATE, "--group-by")),
    ("evaluate --data cifar10 --expect 0.5", f"{EVALUATE} --tolerance --data-dir"),
    ("evaluate --data x --scores x.npy", f"{EVALUATE} --overwrite"),
    ("evaluate --data x --predictions x.csv", f"{but(EVALUATE, '--resume')} --overwrite"),
    ("evaluate --data x --resume x.jsonl", but(EVALUATE, "--predictions")),
    ("compare x y", "--changed --json"),
    ("compare x y --json", ""),
    ("compare x y --json x.json", "--changed --json --overwrite"),
    ("export x --output x.onnx", EXPORT),
    ("export --model x", f"{EXPORT} --output"),
    ("export cvt-nano-cifar10 --output x.onnx", but(EXPORT, "--revision")),
    (
        "export x --output x.onnx --int8 --calibration x",
        f"{but(EXPORT, '--precision')} --calibration",
    ),
    (
        "export x --output x.safetensors",
        "--format --layout --overwrite --res --resize --activation --revision --offline --json",
    ),
    ("finetune --data cifar10", FINETUNE),
    (
        "finetune x.parquet",
        f"{but(FINETUNE, '--data-dir')} --columns --images --separator --threshold-for",
    ),
    ("benchmark", BENCHMARK),
    ("benchmark --variant nano", but(BENCHMARK, "--model")),
    ("benchmark --model cvt-nano-cifar10", but(BENCHMARK, "--variant")),
    ("download cvt-13", "--revision --engine --json"),
    ("download --all", "--revision --engine --json"),
    ("flops", "--variant --model --res --num-classes --json"),
    ("flops 13", "--res --num-classes --json"),
    ("flops cvt-13", "--res --num-classes --json"),
    ("count-params nano", "--num-classes --json"),
    ("benchmark nano", but(BENCHMARK, "--variant --model")),
    ("benchmark --job predict --data x", f"{but(BENCHMARK, '--plot --card --energy')} --data"),
    ("flops --variant 13", "--res --num-classes --json"),
    ("flops --model cvt-13", "--res --num-classes --json"),
    ("count-params", "--variant --model --num-classes --json"),
    ("count-params --json", "--variant --model --res --num-classes"),
    ("models", "--json"),
    ("info cvt-13", "--revision --offline --res --activation --json"),
    ("info cvt-nano-cifar10", "--offline --res --activation --json"),
    (
        "finetune --resume x",
        "--resume --data --data-dir --images --offline --device --gpus --workers --max-time --json "
        "--strict --track --energy",
    ),
    ("finetune x --folds 3", but(FINETUNE, "--data-dir --max-time --gpus --sync-bn")),
    (
        "finetune --show-recipe",
        "--show-recipe --recipe --variant --epochs --batch-size --lr --warmup-epochs "
        "--weight-decay --clip --augment --json",
    ),
    (
        "finetune --data x --recipe linear-probe",
        "--data --val-fraction --model --revision --offline --variant --res --resize --activation "
        "--recipe "
        "--show-recipe --batch-size --class-weights --seed --device --precision --resume "
        "--dry-run --output --json --strict --group-by --allow-overlap --folds --energy",
    ),
    (
        "finetune --data x --variant nano",
        "--data --val-fraction --offline --variant --res --resize --activation --freeze --recipe "
        "--show-recipe --epochs --batch-size --accumulate --lr --warmup-epochs --weight-decay "
        "--clip --augment --class-weights --sampler --select --patience --max-time --seed "
        "--device --gpus --sync-bn --precision --checkpoint-activations --workers --resume "
        "--dry-run --output --json "
        "--strict --group-by --allow-overlap --folds --track --energy",
    ),
    ("push nowhere user/name", "--private --json"),
    ("card cvt-13", "--add --revision --offline --output --json"),
    ("card cvt-nano-cifar10", "--add --offline --output --json"),
    ("card --check x", "--check --json"),
    ("cache list", "--json"),
    ("cache path", "--json"),
    ("cache verify", "--json"),
    ("cache remove --all", "--json"),
    ("cache remove cvt-13", "--json"),
]

VALUES = {
    "--res": "64",
    "--resume": "x.jsonl",
    "--max-time": "1h",
    "--columns": "path=x",
    "--variant": "13",
    "--model": "cvt-nano-cifar10",
    "NAME": "cvt-13",
}
"""Of options that take any text; others get one by their type."""


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, "cache list"."""
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands())


def parameters(command: str) -> dict[str, tuple[type, Any]]:
    """By the name on the command line: the type of each option and argument, and what declares
    it."""
    found = {}
    callback = COMMANDS[command].callback
    hints = typing.get_type_hints(callback.__wrapped__, include_extras=True)
    names = options.names_of(COMMANDS[command])
    for parameter, name in names.items():
        kind, declaration = typing.get_args(hints[parameter])[:2]
        while typing.get_origin(kind) not in (None, typing.Literal):  # `X | None`, `list[X]`
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        found[name] = (kind, declaration)
    return found


def command_of(line: str) -> str:
    return max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len)


def test_every_command_has_its_options_with_effect_listed() -> None:
    assert {command_of(line) for line, _ in OPTIONS_WITH_EFFECT} == set(COMMANDS)


def spelled(name: str, kind: Any) -> list[str]:
    """An option with a value that it takes."""
    if kind is bool:
        return [name]
    values = {int: "3", float: "0.5", str: VALUES.get(name, "x"), Path: VALUES.get(name, "x")}
    value = values[kind] if kind in values else typing.get_args(kind)[-1]
    return [name, str(value)] if name.startswith("-") else [str(value)]


@pytest.mark.parametrize(("line", "effective"), OPTIONS_WITH_EFFECT, ids=lambda text: text[:40])
def test_an_option_without_effect_is_refused(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, effective: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = parameters(command_of(line))
    assert set(effective.split()) <= set(names)

    accepted = []
    for name, (kind, _) in names.items():
        if name in ("--resume-predictions", "--json-file"):  # what `options.Command` makes of words
            continue
        if name.startswith("--") and name not in (*effective.split(), *line.split()):
            result = cvt(*line.split(), *spelled(name, kind))
            explained = re.search(rf"^error: .*{name}\b", result.stderr, re.MULTILINE)
            if result.exit_code != 2 or not explained:
                accepted.append(name)

    assert not accepted


@pytest.mark.parametrize("command", COMMANDS)
def test_every_value_is_read_by_a_parser_that_refuses_an_empty_one(cvt, command: str) -> None:
    known = parameters(command)

    for name, (kind, declaration) in known.items():
        if kind is bool:
            continue
        if kind is str or kind is Path:
            assert declaration.parser in PARSERS, name
        line = []
        for other, (its_kind, _) in known.items():
            if other == name:
                line += [name, ""] if name.startswith("-") else [""]
            elif not other.startswith("-") or other in ("--data", "--output"):
                line += spelled(other, its_kind)

        result = cvt(*command.split(), *line)

        assert result.exit_code == 2
        assert re.search(rf"Invalid value for '\[?{name}\b", result.stderr)


PARSERS: tuple[Callable[[str], Any], ...] = (
    options.text, options.place, options.path, options.source, options.device, explain._method,
)  # fmt: skip


def test_a_home_folder_that_nobody_has_is_a_usage_error(cvt, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for line in (
        "predict ~nouser/x", "predict @~nouser/x", "info ~nouser/x", "compare a ~nouser/x",
        "predict a --html ~nouser/x", "evaluate --data ~nouser/x", "finetune --resume ~nouser/x",
    ):  # fmt: skip
        result = cvt(*line.split())

        assert result.exit_code == 2
        assert "`~nouser/x`: there is no home folder `~nouser`" in result.stderr


def test_a_home_folder_is_written_out_also_behind_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert options.path("~/x") == tmp_path / "x"
    assert options.source("@~/x") == f"@{tmp_path}/x"
    Path("~nouser").touch()
    assert options.place("~nouser") == "~nouser"


def test_given_is_what_was_written_also_with_the_default_value() -> None:
    seen: list[list[str]] = []
    app = typer.Typer()

    @app.command()
    def command(
        ctx: typer.Context,
        images: typing.Annotated[list[str] | None, typer.Argument(metavar="[IMAGE...]")] = None,
        lr: typing.Annotated[float, typer.Option("--lr", "-l")] = 0.1,
        exif: typing.Annotated[bool, typer.Option("--exif/--no-exif")] = True,
    ) -> None:
        seen.append(options.given(ctx))

    for line in ([], ["a"], ["-l", "0.1", "--no-exif"]):
        typer.testing.CliRunner().invoke(app, line)

    assert seen == [[], ["IMAGE"], ["--lr", "--exif"]]


def test_an_output_is_neither_an_input_nor_another_output(cvt, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(CHELSEA.read_bytes())
    classes = tmp_path / "data"
    (classes / "cat").mkdir(parents=True)
    (classes / "cat" / "1.png").write_bytes(CHELSEA.read_bytes())
    same = tmp_path / "same"
    data = ("evaluate", "--data", classes)

    for arguments, said in (
        (("predict", photo, "--html", photo), "is an input, and the output would replace it"),
        (
            ("predict", f"@{photo}", "--resume", photo),
            "is an input, and the output would replace it",
        ),
        (("predict", photo, "--html", same, "--parquet", same), "is named for two outputs"),
        ((*data, "--predictions", f"{same}.csv", "--report", f"{same}.csv"), "for two outputs"),
    ):
        result = cvt(*arguments, "--model", "cvt-nano-cifar10")
        assert result.exit_code == 2 and said in result.stderr, result
    assert photo.read_bytes() == CHELSEA.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "photo.png"]


@pytest.mark.parametrize("models", [1, 2])
def test_what_an_evaluation_reads_is_not_replaced_by_what_it_writes(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b")[:models]:
        shutil.copytree(CHECKPOINTS["cvt-nano-cifar10"].embedded, tmp_path / name)
    (tmp_path / "1.png").write_bytes(CHELSEA.read_bytes())
    table = tmp_path / ("t.csv" if models == 1 else "t.a.csv")
    table.write_text("path,label\n1.png,cat\n")
    names = tmp_path / "names.json"
    names.write_text('{"cat": "cat"}')
    told = [part for name in ("a", "b")[:models] for part in ("--model", name)]

    for more in (["--predictions", "t.csv"], ["--label-map", names, "--json", names]):
        result = cvt("evaluate", table.name, *told, *more, "--overwrite")
        assert result.exit_code == 2, result.stderr
        assert "is an input, and the output would replace it" in result.stderr
    assert table.read_text() == "path,label\n1.png,cat\n"
    assert names.read_text() == '{"cat": "cat"}'
