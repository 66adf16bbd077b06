"""What is published of the seven checkpoints besides the catalogue, each fact with its source.

Sources: *paper* is arXiv 2103.15808; *reference* the authors' repository, microsoft/CvT at commit
f851e68; *hub* the repositories microsoft/cvt-* and their cards; *third party* PaddleViT's
measurements. What none of them says is "not published" here.
"""

from cvt_cli.cards.markdown import Markdown, code, rows, table
from cvt_cli.spec.config import CvTConfig
from cvt_cli.spec.costs import costs
from cvt_cli.spec.published import MEASURED_AT, MEASURED_BY, KnownCheckpoint
from cvt_cli.spec.recipes import RECIPES
from cvt_cli.spec.variants import VARIANTS

REFERENCE = "https://github.com/microsoft/CvT"
PAPER = "https://arxiv.org/abs/2103.15808"

AUTHORS = (
    "Haiping Wu, Bin Xiao, Noel Codella, Mengchen Liu, Xiyang Dai, Lu Yuan and Lei Zhang (paper)"
)

BIBTEX = """@inproceedings{wu2021cvt,
  title = {CvT: Introducing Convolutions to Vision Transformers},
  author = {Wu, Haiping and Xiao, Bin and Codella, Noel and Liu, Mengchen and Dai, Xiyang and
            Yuan, Lu and Zhang, Lei},
  booktitle = {ICCV}, year = {2021}, note = {arXiv:2103.15808}
}"""

APA = (
    "Wu, H., Xiao, B., Codella, N., Liu, M., Dai, X., Yuan, L., & Zhang, L. (2021). CvT: "
    "Introducing convolutions to vision transformers. In ICCV. arXiv:2103.15808."
)

DOWNSTREAM: dict[str, tuple[float, float, float, float]] = {
    "13": (98.83, 91.11, 93.25, 99.50),
    "21": (99.16, 92.88, 94.03, 99.62),
    "w24": (99.39, 94.09, 94.73, 99.72),
}
"""Top-1 in per cent on CIFAR-10, CIFAR-100, Pets and Flowers-102, after pre-training on
ImageNet-22k and fine-tuning at 384 pixels (paper)."""

WEIGHT_DECAY = {"13": 0.05, "21": 0.1, "w24": 0.1}

README_TOP1 = 87.6
"""W24's in the reference's README."""

WITH_22K_HEAD = "298.3 M"
"""W24's parameters with a head of 22k classes, which was never released."""

FINE_TUNING_STEPS = "20,000"


def pretrained_on(known: KnownCheckpoint) -> str:
    """The data that it was trained on, in words."""
    if known.name.endswith("-22k"):
        return "ImageNet-22k, then fine-tuned on ImageNet-1k"
    return "ImageNet-1k"


def limits(known: KnownCheckpoint) -> list[str]:
    """What it cannot do, as far as anybody measured it; a sentence each."""
    scores = known.scores
    assert scores is not None
    found = [
        f"It answers with one of the {known.num_classes} classes of ImageNet-1k whatever the "
        "picture shows; classes 134 and 517 are both called crane.",
        f"On new photographs of the same classes (ImageNet-V2) it is right {scores.v2} % of the "
        f"time, {scores.top1 - scores.v2:.1f} points less than on ImageNet-1k's validation "
        "images.",
    ]
    if known.misstated:
        found.append(
            f"Its preprocessor_config.json says {known.misstated} pixels, which is wrong: it takes "
            f"{known.size}. `cvt` corrects it; other tools do not."
        )
    if known.size == 384:
        found.append(
            "It wants the whole picture squashed to its size: a centre crop costs 0.2 to 0.4 "
            "points."
        )
    return found


def results(known: KnownCheckpoint) -> Markdown:
    """Its accuracies, with who measured them."""
    scores = known.scores
    assert scores is not None
    third = f"{MEASURED_BY}, {MEASURED_AT}"
    return table(
        ("measure", "data", "value", "source"),
        [
            ("top-1", "ImageNet-1k, validation", f"{scores.paper_top1} %", "paper"),
            ("top-1", "ImageNet-1k, validation", f"{scores.top1:.2f} %", third),
            ("top-5", "ImageNet-1k, validation", f"{scores.top5:.2f} %", third),
            ("top-1 by ReaL's labels", "ImageNet-ReaL", f"{scores.real} %", third),
            ("top-1", "ImageNet-V2", f"{scores.v2} %", third),
        ],
    )


def downstream(known: KnownCheckpoint) -> Markdown:
    """What the paper reports after fine-tuning on other data; empty where it does not."""
    if not known.name.endswith("-22k"):
        return Markdown("")
    names = ("CIFAR-10", "CIFAR-100", "Oxford-IIIT Pet", "Flowers-102")
    values = DOWNSTREAM[known.variant]
    told = [(name, f"{value:.2f} %") for name, value in zip(names, values, strict=True)]
    return table(("data", "top-1 (paper)"), told)


def contradictions(known: KnownCheckpoint, config: CvTConfig) -> Markdown:
    """Where the sources disagree, with what holds and why."""
    found = costs(known.variant, config, known.size, known.size)
    variant, scores = VARIANTS[known.variant], known.scores
    assert scores is not None and variant.paper_params is not None
    body = [
        ("learning rate", "0.02 (paper's text), 0.002 for a batch of 2048 (reference's files)",
         "0.002: what the reference's own code trains with"),
        ("parameters", f"{variant.paper_params / 1e6:.2f} M (paper), {found.params:,} (counted)",
         f"{found.params:,}: counted from the tensors of 1000 classes"),
        ("what is called FLOPs", f"{_paper_macs(known)} G FLOPs (paper), {found.macs:,} MACs "
         "(counted)", "the paper's figure is of multiply-adds; each is two operations, so "
         f"FLOPs are {2 * found.macs:,}"),
        ("license", "MIT (reference), Apache-2.0 (hub's cards)",
         "the code is MIT; for the weights on the hub their card counts"),
        ("activation", "QuickGELU (reference), exact GELU (transformers)",
         "QuickGELU: the weights were trained with it"),
        ("LayerNorm's epsilon", "1e-5 (reference), 1e-12 (hub's config)",
         "1e-5: transformers' code does not use the config's value either"),
    ]  # fmt: skip
    if known.variant == "w24":
        body += [
            ("top-1", f"{scores.paper_top1} % (paper), {README_TOP1} % (reference's README), "
             f"{scores.top1} % (third party)",
             f"cite {scores.paper_top1}, expect {scores.top1}"),
            ("parameters with another head", f"{WITH_22K_HEAD} (22k classes)",
             f"{found.params:,}: a head of 22k classes was never released"),
            ("stochastic depth", "0.3 (reference), 0.1 (hub's config)", "0.3: as it was trained"),
        ]  # fmt: skip
    if known.misstated:
        body.append(
            ("input size", f"{known.misstated} (hub's preprocessor_config.json), {known.size} "
             "(reference, and the file's name)", f"{known.size}")
        )  # fmt: skip
    if known.name.endswith("-22k"):
        body.append(
            ("22k in the name", "it can be read as 22k classes",
             f"it is the pre-training alone; the head has {known.num_classes} classes")
        )  # fmt: skip
    return table(("what", "the sources say", "what holds, and why"), body)


def _paper_macs(known: KnownCheckpoint) -> str:
    of_paper = VARIANTS[known.variant].paper_macs[known.size]
    return f"{of_paper / 1e9:g}"


def procedure(known: KnownCheckpoint) -> Markdown:
    """How it was trained, as far as it is published."""
    recipe = RECIPES["imagenet"]
    pairs = [
        ("optimizer", "AdamW (reference)"),
        ("weight decay", f"{WEIGHT_DECAY[known.variant]:g}, none on biases, norms and the class "
         "token (reference)"),
        ("learning rate", "0.002 for a batch of 2048, linear in the batch; 5 epochs of warm-up "
         "from 1e-6, cosine to 1e-5 (reference)"),
        ("batch", "2048 (reference)"),
        ("epochs", "300, from scratch (reference)"),
        ("resolution", "224 (reference)"),
        ("augmentation", "RandAugment rand-m9-mstd0.5-inc1, mixup 0.8, cutmix 1.0, random erasing "
         "0.25 (pixel), colour jitter 0.4, label smoothing 0.1 (reference)"),
    ]  # fmt: skip
    assert recipe.batch_size == 2048
    text = "From scratch on ImageNet-1k at 224 pixels:\n\n"
    if known.size == 224:
        return Markdown(text + rows(pairs))
    if known.name.endswith("-22k"):
        text = "How it was pre-trained on ImageNet-22k: not published. "
        return Markdown(
            text + "Fine-tuning on ImageNet-1k at 384 pixels (paper): SGD with momentum 0.9, a "
            f"batch of 512, {FINE_TUNING_STEPS} steps; the learning rate is not given. The recipe "
            "of training from scratch:\n\n" + rows(pairs)
        )
    return Markdown(
        "How it was brought from 224 to 384 pixels: not published. " + text + rows(pairs)
    )


def differences() -> str:
    """What another reader of the weights computes."""
    return (
        f"`transformers` computes exact GELU where the weights were trained with QuickGELU, so its "
        f"logits differ slightly; {code('cvt')} computes QuickGELU."
    )
