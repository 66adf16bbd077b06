"""Command lines as other tools take them, answered with the one that is right here.

Read only after a command line could not be parsed. Nothing is run: the user sees the line, and
decides. What timm, torchvision, Ultralytics, transformers and fastai call a thing is in the tables;
to teach another spelling is to add a word to one of them.
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from cvt_cli.base.errors import UsageError
from cvt_cli.commands import options
from cvt_cli.spec import recipes


def _by_word(table: dict[str, str]) -> dict[str, str]:
    """From "ours: their words" to "their word: ours"."""
    return {word: ours for ours, words in table.items() for word in words.split()}


COMMANDS = _by_word(
    {
        "predict": "classify classification classifier inference infer run label detect test-image "
        "image show-results",
        "evaluate": "val valid validate validation eval test score accuracy",
        "explain": "gradcam grad-cam cam heatmap saliency attribution attention interpret why "
        "visualize visualise explanation",
        "finetune": "train fit fine-tune fine-tuning tune training learn transfer",
        "export": "convert save onnx",
        "benchmark": "bench speed profile timeit",
        "models": "list ls list-models model-list zoo checkpoints weights",
        "info": "show describe inspect summary model",
        "download": "fetch pull get",
        "push": "upload push-to-hub publish",
        "flops": "macs mac gflops flop complexity",
        "count-params": "params parameters count n-params count-parameters",
        "cache": "clean clear purge prune",
    }
)
"""Commands of other tools."""

CACHE = _by_word(
    {
        "list": "ls show info",
        "remove": "clear clean purge prune rm delete empty",
        "path": "dir where folder location",
        "verify": "check scan test",
    }
)
"""What others call the commands below `cvt cache`."""

MODES = ("mode", "task")
"""Settings of Ultralytics whose value is the command."""

SIZE = "imgsz img-size image-size input-size size img resolution crop-size image-resolution"
MODEL = (
    "weights checkpoint checkpoint-path ckpt ckpt-path weights-path model-name-or-path model-name "
    "model-path model-id arch net backbone initial-checkpoint pretrained-model"
)
DATA = (
    "data-path data-root train-dir train-folder train-data dataset-name dataset-dir dataset-path "
    "root source input"
)

SPELLINGS: dict[str, dict[str, str]] = {
    # For each command, and "" for all: our words, and what others call it. Ours that end in a name
    # take what follows theirs; "IMAGE", "DATA", … are arguments.
    "": _by_word(
        {
            "--res": SIZE,
            "--model": MODEL,
            "--batch-size": "batch bs batchsize eval-batch-size per-device-eval-batch-size",
            "--workers": "num-workers j dataloader-num-workers nworkers threads num-threads",
            "--device": "devices use-device accelerator",
            "--device cuda": "cuda gpu use-gpu use-cuda",
            "--device cpu": "no-cuda cpu use-cpu no-gpu",
            "--precision": "dtype torch-dtype amp-dtype data-type compute-dtype",
            "--precision bf16": "amp bf16 mixed-precision autocast bfloat16",
            "--precision fp16": "half fp16 float16",
            "--precision fp32": "fp32 float32 no-amp",
            "--top-k": "topk k num-predictions",
            "--engine": "backend runtime",
            "--variant": "architecture",
        }
    ),
    "predict": _by_word(
        {
            "IMAGE": f"{DATA} image images input-dir img-path image-path path file filename files "
            "data folder data-dir",
            "--threshold": "conf confidence min-score score-threshold conf-thres",
            "--output": "results-file output-file out outfile save-to save-path output-dir",
            "--jsonl": "json-lines jsonlines ndjson",
            "--background": "bg",
        }
    ),
    "evaluate": _by_word(
        {
            "--data": f"{DATA} val-dir validation-dir val-data test-dir eval-dir val-folder",
            "--predictions": "output o csv save-predictions predictions-file output-file",
            "--label-map": "class-map class-to-idx",
            "--real": "real-labels",
            "--report": "plots report-dir html",
        }
    ),
    "finetune": _by_word(
        {
            "--data": DATA,
            "--output": "output-dir out outdir save-dir project name experiment experiment-name "
            "out-dir logging-dir run-dir",
            "--epochs": "num-train-epochs num-epochs epoch n-epochs max-epochs e",
            "--batch-size": "per-device-train-batch-size train-batch-size",
            "--lr": "learning-rate lr0 base-lr blr peak-lr lr-max max-lr",
            "--weight-decay": "wd",
            "--warmup-epochs": "lr-warmup-epochs warmup",
            "--clip": "clip-grad max-grad-norm clip-grad-norm gradient-clip-val grad-clip "
            "clip-norm",
            "--augment": "aa auto-augment aug augmentation augs",
            "--accumulate": "gradient-accumulation-steps grad-accum-steps accum-iter "
            "accumulate-grad-batches accum",
            "--checkpoint-activations": "gradient-checkpointing grad-checkpointing",
            "--patience": "early-stopping-patience patience-epochs",
            "--max-time": "time max-hours",
            "--val-fraction": "val-split validation-split train-val-split valid-pct val-size",
            "--resume": "resume-from-checkpoint resume-from continue last",
            "--gpus": "nproc-per-node ngpus num-gpus n-gpu n-gpus num-processes",
            "--sync-bn": "sync-batchnorm syncbn",
            "--seed": "random-seed manual-seed random-state",
            "--class-weights balanced": "balanced class-balanced",
            "--track": "report-to logger loggers trackers log-with",
            "--track wandb": "log-wandb wandb use-wandb",
            "--track tensorboard": "tensorboard log-tensorboard tb",
            "--track mlflow": "mlflow log-mlflow",
            "--freeze backbone": "freeze-backbone freeze-encoder",
            "--recipe linear-probe": "linear-probe linprobe feature-extract",
        }
    ),
    "export": _by_word(
        {
            "--format": "export-format include to framework f",
            "--output": "out outfile output-file save-path file output-dir output-path",
            "--int8": "quantize quantise quantized",
            "--calibration": "calib calib-data calibration-data data",
            "--dynamic-size": "dynamic dynamic-axes dynamic-shapes",
            "--with-preprocessing": "preprocessing include-preprocessing",
        }
    ),
    "benchmark": _by_word(
        {
            "--batch-size": "batch-sizes",
            "--rounds": "num-iters iters iterations runs repeats repeat num-bench-iter",
            "--plot": "figure",
        }
    ),
    "flops": _by_word({"--num-classes": "nc classes num-labels n-classes"}),
    "count-params": _by_word({"--num-classes": "nc classes num-labels n-classes"}),
}

VALIDATION = "validation images come from `val/` beside `train/`, or are held out"

WITHOUT: dict[str, dict[str, str]] = {
    # What has no option: for each command, why, and what others call it. An "=" after a word says
    # that a value follows it.
    "": {
        "preprocessing belongs to the checkpoint, and `cvt info MODEL` prints it": "crop-pct= "
        "interpolation= mean= std= crop-mode= resize-size= val-resize-size= mean-std=",
        "images always have three channels (RGB)": "channels= in-chans= in-channels=",
        "the number of classes comes from the data or the checkpoint": "num-classes= nc= "
        "num-labels= n-classes=",
        "weights are always loaded safely": "weights-only trust-remote-code",
        "the layout of the data is recognised": "dataset-type= data-format= split= val-split= "
        "train-split= dataset-config-name= class-map=",
        "results are only printed and written to files": "show save save-txt save-conf plots "
        "visualize no-plots exist-ok= verbose quiet",
        "memory is managed automatically": "channels-last pin-mem pin-memory cache compile "
        "torchcompile= optimize simplify opset= torchscript fuser= no-prefetcher fast-norm",
        "several processes are started by torchrun or `--gpus`": "distributed world-size= rank= "
        "local-rank= dist-url= dist-backend= ddp",
    },
    "finetune": {
        VALIDATION: "val-dir= validation-dir= val-data= valid= validation-data= val-folder= "
        "valid-dir=",
        "training starts from a checkpoint unless `--variant` is given": "pretrained",
        "it is part of the recipe, which `--show-recipe` prints and `--recipe` "
        "chooses": "opt= optimizer= optim= sched= scheduler= lr-scheduler= "
        "lr-scheduler-type= momentum= smoothing= label-smoothing= label-smoothing-factor= mixup= "
        "mixup-alpha= cutmix= cutmix-alpha= mixup-prob= drop= drop-path= dropout= model-ema "
        "model-ema-decay= ema layer-decay= reprob= random-erase= remode= recount= min-lr= "
        "warmup-lr= warmup-steps= warmup-ratio= cooldown-epochs= decay-epochs= decay-rate= "
        "lr-step-size= lr-gamma= lrf= cos-lr hflip= vflip= color-jitter= ra-magnitude= scale= "
        "ratio= lr-warmup-method= lr-warmup-decay= norm-weight-decay= aug-splits= bce-loss "
        "adam-epsilon= betas= adam-beta1= adam-beta2= auto-lr-find lr-find",
        "this command trains, and validates every epoch": "do-train do-eval evaluation-strategy= "
        "eval-strategy= save-strategy= logging-strategy= load-best-model-at-end val test-only",
        "the best epoch and the last state are always kept": "save-total-limit= save-period= "
        "save-steps= checkpoint-hist= overwrite-output-dir save-every=",
        "progress is always shown, and kept in `metrics.csv`": "log-interval= logging-steps= "
        "print-freq= log-every= eval-steps=",
    },
    "predict": {
        "give `--features FILE.npz` for the vectors": "forward-features embed embedding",
    },
    "evaluate": {
        "`--json FILE.json` writes the results": "results-file= results= save-json",
        "the weights are always the checkpoint's": "pretrained",
        "this command evaluates": "do-eval do-predict evaluate test-only val",
    },
    "export": {
        "every batch size is accepted": "batch= batch-size= dynamic-batch",
    },
}

FORMATS: dict[str, tuple[str, str]] = {
    # What cannot be written here: the format that leads to it, and how.
    "engine": ("onnx", "TensorRT builds its engine from ONNX: `trtexec --onnx=FILE.onnx "
               "--saveEngine=FILE.engine`"),
    "tflite": ("onnx", "TFLite is made from ONNX by `onnx2tf -i FILE.onnx`"),
    "saved-model": ("onnx", "a TensorFlow SavedModel is made from ONNX by `onnx2tf -i FILE.onnx`"),
    "coreml": ("pt2", "Core ML is made from a .pt2 by coremltools: "
               "`coremltools.convert(torch.export.load(\"FILE.pt2\"))`"),
    "torchscript": ("pt2", ".pt2 (torch.export) has taken TorchScript's place in PyTorch"),
    "ncnn": ("onnx", "ncnn is made from ONNX by `pnnx FILE.onnx`"),
    "paddle": ("onnx", "Paddle is made from ONNX by `x2paddle --framework=onnx`"),
}  # fmt: skip

FORMAT_NAMES = {
    **{name: name for name in FORMATS},
    **_by_word(
        {
            "engine": "tensorrt trt plan",
            "tflite": "litert tensorflow-lite lite edgetpu",
            "saved-model": "tensorflow tf pb keras tfjs h5",
            "coreml": "mlmodel mlpackage core-ml",
            "torchscript": "pt ts jit torch pth",
        }
    ),
}
"""What others call those formats, also as a suffix."""

OUR_FORMATS = {"ov": "openvino", "ort": "onnx", "torch.export": "pt2", "huggingface": "safetensors"}


@dataclass
class _Line:
    """A command line as it would be here, while it is made."""

    typed: Sequence[str] = ()
    words: list[str] = field(default_factory=list)
    departures: list[str] = field(default_factory=list)  # sentences
    lacking: dict[str, list[str]] = field(default_factory=dict)  # what has no option, by the reason
    unknown: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)  # folders of validation images
    positional: int = 0

    def says(self, theirs: str, ours: str) -> None:
        self.departures.append(f"`{theirs}` is `{ours}` here")

    def lacks(self, theirs: str, why: str) -> None:
        self.lacking.setdefault(why, []).append(f"`{theirs}`")

    def sentence(self) -> str:
        """What is otherwise here; empty where no habit of another tool was found."""
        said = [*self.departures]
        said += [f"{' and '.join(theirs)} left out: {why}" for why, theirs in self.lacking.items()]
        if said and self.unknown:
            said.append(f"{' and '.join(self.unknown)} left out: there is no such option")
        return "; ".join(said)


def explain(group: Any, words: Sequence[str]) -> UsageError | None:
    """What is right here in place of a command line that could not be understood.

    Args:
        group: the app.
        words: what follows ``cvt``.

    Returns:
        None where no habit of another tool is found in it.
    """
    line = _Line(typed=words)
    rest = _command(group, list(words), line)
    if rest is None:
        return None
    if line.words == ["cache"] and rest and rest[0] in CACHE:
        line.says(f"cache {rest[0]}", f"cache {CACHE[rest[0]]}")
        rest = [CACHE[rest[0]], *(rest[1:] or (["--all"] if CACHE[rest[0]] == "remove" else []))]
    command = group.commands.get(line.words[0]) if line.words else None
    if command is not None and not hasattr(command, "commands"):
        _options(command, line.words[0], rest, line)
        _join_parts(line)
        _arguments(command, line)
    else:
        line.words += rest
    sentence = line.sentence()
    return UsageError(sentence, hint=shlex.join(["cvt", *line.words])) if sentence else None


def is_setting(word: str) -> bool:
    """Whether a word is a setting as Ultralytics writes it, ``epochs=3``, and no file."""
    key, sign, _ = word.partition("=")
    key = _plain(key)
    known = {name for table in SPELLINGS.values() for name in table}
    known |= {_plain(ours.split()[0]) for table in SPELLINGS.values() for ours in table.values()}
    known |= {name.strip("=") for table in WITHOUT.values() for names in table.values()
              for name in names.split()}  # fmt: skip
    return bool(sign) and key in {*known, *MODES, "data"} and not os.path.exists(word)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()


# --- which command


def _command(group: Any, words: list[str], line: _Line) -> list[str] | None:
    """Put the command's name on the line; what is left of the words, None where none is meant."""
    ours = set(group.commands)
    for place, word in enumerate(words):
        key, sign, value = word.partition("=")
        if sign and key in MODES and _plain(value) in {*COMMANDS, *ours}:
            # `mode=train` says it wherever it stands, `task=classify` only where nothing else does
            if key == "mode" or not any(other.startswith("mode=") for other in words):
                words = [_plain(value), *words[:place], *words[place + 1 :]]
            else:
                words = words[:place] + words[place + 1 :]
            line.departures.append(f"`{word}` is a command here")
            return _command(group, words, line)
    if not words:
        return None
    first, *rest = words
    word = _plain(first)
    if first in ours:
        line.words.append(first)
        return rest
    if word == "help" or first == "/?":
        line.words += [*(one for one in rest[:1] if one in ours), "--help"]
        line.says(shlex.join(words[:2]), shlex.join(line.words))
        return []
    if first.startswith("-"):
        return _without_command(group, words, line)
    if word == "version":
        line.words.append("--version")
        line.says(first, "--version")
        return []
    if word in ("classify", "classification", "cls", "task") and rest:
        if rest[0] in ours or _plain(rest[0]) in COMMANDS:  # as in `yolo classify train`
            line.departures.append(f"`{first}` is left out here")
            return _command(group, rest, line)
    if word in COMMANDS:
        command = COMMANDS[word]
        if command == "cache":
            line.words += ["cache", "remove"]
            line.says(first, "cache remove")
            return rest or ["--all"]
        line.words.append(command)
        line.says(first, command)
        return rest
    if os.path.exists(first) or _looks_like_an_image(first):
        line.words.append("predict")
        line.departures.append(f"`{first}` is not a command; `cvt predict` classifies images")
        return words
    return None


def _without_command(group: Any, words: list[str], line: _Line) -> list[str] | None:
    """A command line that begins with an option: what it does is said by the option, if at all."""
    ours = set(group.commands)
    for place, word in enumerate(words):
        if word in ours:  # as in `cvt --json predict x.jpg`
            line.words.append(word)
            line.departures.append(f"options follow the command: `{word}`")
            return words[:place] + words[place + 1 :]
    name = _plain(words[0].partition("=")[0])
    if words == ["-v"]:
        line.words.append("--version")
        line.says("-v", "--version")
        return []
    found = next((c for c in ("predict", "finetune") if name in SPELLINGS[c]), None)
    if found is None:
        return None
    line.words.append(found)
    line.departures.append(f"a command comes first: `{found}`")
    return words


def _looks_like_an_image(word: str) -> bool:
    from cvt_cli.images.finding import SUFFIXES

    return "://" in word or Path(word).suffix.lower() in SUFFIXES or word.startswith("@")


# --- its options


def _options(command: Any, name: str, words: list[str], line: _Line) -> None:
    """Put the rest on the line, each option by the name that it has here."""
    known = {option: p for p in command.params for option in (*p.opts, *p.secondary_opts)}
    left = list(words)
    while left:
        word = left.pop(0)
        option, sign, value = word.partition("=")
        if word == "--":
            line.words += [word, *left]
            return
        short = word[:2] if re.match(r"-[A-Za-z]", word) else None
        ours = option if option in known else short if short in known else None
        if ours is not None and word.startswith("-"):
            line.words.append(word)
            if not known[ours].is_flag and not sign and (ours == word) and left:
                line.words.append(_value(ours, left.pop(0), word, line))
        elif word.startswith("--") or short or is_setting(word):
            given = value if sign else None
            _foreign(known, name, word, option, given, left, line)
        else:
            line.words.append(word)
            line.positional += 1


def _join_parts(line: _Line) -> None:
    """Put the folder of two parts, as ``d/train`` and ``d/val``, in the place of the first, where
    both are given: without the second, its images would be left out."""
    from cvt_cli.datasets.parts import PART_OF

    for value in line.validation:
        path = Path(value)
        places = [n for n, word in enumerate(line.words) if Path(word).parent == path.parent]
        for place in places:
            names = Path(line.words[place]).name, path.name
            if [PART_OF.get(name.casefold()) for name in names] == ["train", "val"]:
                both, whole = f"`{line.words[place]}` and `{value}`", str(path.parent)
                line.departures.append(f"{both} are parts of `{whole}`, which is named here")
                line.words[place] = whole
                line.lacking.pop(VALIDATION)
                return


def _foreign(
    known: dict[str, Any],
    command: str,
    word: str,
    option: str,
    given: str | None,
    left: list[str],
    line: _Line,
) -> None:
    """Put an option on the line that is called otherwise here.

    Args:
        known: what declares each option that there is here.
        command: its name.
        word: what the user wrote.
        option: that without its value.
        given: the value that was written behind an equals sign.
        left: words that follow; the value is taken from them.
        line: to put it on.
    """
    key = _plain(option)

    def value_of(takes: bool) -> str | None:
        if given is not None or not takes:
            return given
        return left.pop(0) if left and not left[0].startswith("-") else None

    ours = f"--{key}" if f"--{key}" in known else None
    if ours is None:
        ours = SPELLINGS.get(command, {}).get(key)
    why = None if ours else _why_without(command, key)
    if ours is None and why is None:
        ours = SPELLINGS[""].get(key)
        if ours and ours.startswith("--") and ours.split()[0] not in known:
            ours = None
    if ours is None and why is None:
        why = _why_without("", key)
    if ours is None and why is None:
        # What follows may be its value; for predict it may be an image.
        is_value = command != "predict" or not (
            left and (os.path.exists(left[0]) or _looks_like_an_image(left[0]))
        )
        value = value_of(is_value)
        line.unknown.append(f"`{_written(word, given, value)}`")
        return
    if why is not None:
        value = value_of(why[1] or bool(left and re.fullmatch("(?i)true|false", left[0])))
        if why[0] == VALIDATION and value is not None:
            line.validation.append(value)
        line.lacks(_written(word, given, value), why[0])
        return
    assert ours is not None
    if not ours.startswith("--"):  # an argument
        value = value_of(True)
        shown = value or ours
        line.words.append(shown)
        line.positional += 1
        line.departures.append(f"`{_written(word, given, value)}` is an argument here: `{shown}`")
        return
    name, _, constant = ours.partition(" ")
    if name == "--output" and name in line.words:
        line.lacks(_written(word, given, value_of(True)), "the folder is named once, by --output")
        return
    if constant or known[name].is_flag:
        if given is None and left and re.fullmatch(r"\d|true|false", left[0].lower()):
            given = left.pop(0)
            word = f"{word} {given}"
        if (
            given is not None
            and given.lower() in ("false", "no", "none", "")
            or (given == "0" and name != "--device")
        ):
            line.departures.append(f"`{word}` is left out here")
            return
        if ours == "--device cuda" and given and re.fullmatch(r"\d", given):
            ours = f"--device cuda:{given}"
        line.words += ours.split()
        line.says(word, ours)
        return
    value = value_of(True)
    written = _written(word, given, value)
    if name == "--res" and value is not None and given is None:
        while left and re.fullmatch(r"\d+", left[0]) and not os.path.exists(left[0]):
            value += f",{left[0]}"  # `--imgsz 32 64`
            written += f" {left.pop(0)}"
    # In the place of a value that was forgotten stands what it is called.
    now = [name, _value(name, value, written, line) if value else str(known[name].metavar)]
    line.words += now
    line.says(written, shlex.join(now))


def _written(word: str, given: str | None, value: str | None) -> str:
    """What the user wrote, with the value that followed it."""
    return word if given is not None or value is None else f"{word} {value}"


def _why_without(command: str, key: str) -> tuple[str, bool] | None:
    """Why there is no such option, and whether a value follows it."""
    for why, names in WITHOUT.get(command, {}).items():
        for name in names.split():
            if name.strip("=") == key:
                return why, name.endswith("=")
    return None


def _value(option: str, value: str, written: str, line: _Line) -> str:
    """The value of one of our options, as it is written here."""
    ours = value
    if option == "--device":
        if re.fullmatch(r"\d", value):
            ours = f"cuda:{value}"
        elif value.lower() in ("gpu", "0,1", "cuda:all"):
            ours = "cuda"
    elif option == "--res":
        sides = re.findall(r"\d+", value)
        if len(sides) == 3 and sides[0] == "3":  # channels, as timm writes them
            del sides[0]
        if "," in value and len(sides) == 2:
            ours = sides[0] if sides[0] == sides[1] else "x".join(sides)
    elif option == "--format":
        ours = _format(value, line)
    elif option in ("--output", "-o") and line.words and "export" in line.words[:1]:
        path = Path(value)
        if form := FORMAT_NAMES.get(path.suffix.lstrip(".").lower()):
            into, how = FORMATS[form]
            if any(word.startswith("--layout") for word in line.typed):
                into, how = "safetensors", "--layout names the tensors of a .safetensors"
            ours = str(path.with_suffix(f".{into}"))
            line.departures.append(how)
    elif option == "--augment" and value not in get_args(recipes.Augment):
        if not written.startswith(option):
            ours = "NAME"
            line.lacks(value, f"--augment takes {options.either(recipes.Augment)}")
    elif option == "--precision":
        ours = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32",
                "float": "fp32"}.get(value.lower(), value)  # fmt: skip
    if (
        ours != value
        and option in ("--device", "--precision", "--res")
        and written.startswith(option)
    ):
        line.says(f"{option} {value}", f"{option} {ours}")
    return ours


def _format(value: str, line: _Line) -> str:
    """The format that can be written here, and how the one that is meant is made of it."""
    plain = _plain(value).lstrip(".")
    if plain in FORMAT_NAMES:
        into, how = FORMATS[FORMAT_NAMES[plain]]
        line.departures.append(f"there is no format `{value}`: {how}")
        return into
    return OUR_FORMATS.get(plain, value)


def _arguments(command: Any, line: _Line) -> None:
    """Put a name in the place of what has to be said, and was not."""
    for parameter in command.params:
        metavar = str(parameter.metavar or "")
        is_argument = parameter.param_type_name == "argument"
        if not is_argument or metavar.startswith("[") or "--help" in line.words:
            continue
        if line.positional:
            line.positional -= 1
        elif not {f"--{metavar.lower()}", f"-{metavar.lower()[0]}", "--resume"} & {*line.words}:
            if metavar == "DATA" and "--data-dir" in line.words[:-1] and line.sentence():
                place = line.words.index("--data-dir")  # timm's; here it is where sets are kept
                line.departures.append(f"`--data-dir {line.words[place + 1]}` is an argument here")
                del line.words[place]
            else:
                line.words.append(metavar.strip("."))
