"""What a card says: a value for every field of the hub's template, and for those of ours.

A value that was not measured is one line that names the command which measures it, and begins with
`NOT_MEASURED`. What nobody published is "not published". No field is left empty.
"""

from collections.abc import Mapping
from typing import Any

from cvt_cli.base.package import __version__
from cvt_cli.base.text import counted
from cvt_cli.cards import fields_published, published_facts, shown_results, training
from cvt_cli.cards.about import About
from cvt_cli.cards.markdown import Markdown, code, escaped, rows, table
from cvt_cli.cards.published_facts import APA, BIBTEX, PAPER
from cvt_cli.spec.published import MEASURED_BY

NOT_MEASURED = "Not measured: "
"""How a line begins that says so."""

NOT_STATED = "not stated"
NOT_RECORDED = "not recorded: nobody told where the machine stands"

Fields = dict[str, Any]


def fields(about: About) -> Fields:
    """Every field of a card, by name; those of the hub's template by its names."""
    found = _common(about)
    if about.published:
        found |= fields_published.fields(about, found)
    elif about.record.training:
        found |= _trained(about, about.record.training)
    found["in_short"] = _in_short(about, found)
    return found


def not_measured(command: str, what: str = "") -> Markdown:
    """A line for a value that nobody measured."""
    return Markdown(f"{NOT_MEASURED}{what}{code(command)} measures it.")


def _command(about: About, measuring: str) -> str:
    """A command that measures something, and how that comes into the card.

    Beside a folder's weights its card is written; of a model without a folder of its own the result
    is added when the card is written.
    """
    if about.is_here:
        return f"{measuring} --card {about.argument}"
    return f"{measuring} --json r.json; cvt card {about.argument} --add r.json"


def _evaluated(about: About) -> list[dict[str, Any]]:
    return about.record.of("evaluation")


def _common(about: About) -> Fields:
    """What holds of any checkpoint."""
    labels, argument = about.described.labels, about.argument
    config, how = about.described.config, about.described.preprocessing
    several = labels.several
    height, width = how.size
    answers = (
        "any number of its classes, those whose probability reaches the class's threshold"
        if several
        else "one of its classes"
    )
    shown = ", ".join(escaped(name) for name in labels.names[:20])
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    repository = about.repository and f"https://huggingface.co/{about.repository}"
    activation = {"gelu": "GELU", "quick_gelu": "QuickGELU"}[config.activation]
    return {
        "name": about.name,
        "model_id": about.name,
        "model_summary": f"A CvT of {counted(len(labels), 'class')}.",
        "model_description": Markdown(
            f"It takes an image of {height}x{width} pixels and answers with {answers}: "
            f"{shown}{more}."
        ),
        "developers": "the project cvt-cli" if about.known else NOT_STATED,
        "funded_by": NOT_STATED,
        "shared_by": NOT_STATED,
        "model_type": f"image classifier, CvT{f'-{about.variant}' if about.variant else ''}: "
        f"{len(config.stages)} stages of convolutional embedding and attention",
        "language": "none: it reads images",
        "license": about.license or NOT_STATED,
        "base_model": "none that is known",
        "repo": Markdown(repository) if repository else NOT_STATED,
        "paper": Markdown(f"Wu et al., ICCV 2021, {PAPER}"),
        "demo": "none",
        "direct_use": f"Classifying images into its {counted(len(labels), 'class')}.",
        "downstream_use": Markdown(
            "As a start for training on other classes: "
            f"{code(f'cvt finetune DATA --model {argument}')}."
        ),
        "out_of_scope_use": (
            "Images that show none of its classes"
            + ("" if several else ": it answers with one of them all the same")
            + ". Decisions about people, or where a wrong answer does harm, before it was measured "
            "on images like those in use."
        ),
        "bias_risks_limitations": _limits(about),
        "bias_recommendations": Markdown(
            "Measure it on images like those in use: "
            f"{code(f'cvt evaluate DATA --model {argument}')}. Read the classes and the groups, "
            "not the mean alone, and look at the calibration before a threshold is set."
        ),
        "several": several,
        "argument": argument,
        "folder_argument": about.repository or "MODEL",
        "is_local": about.is_here,
        "transformers_opens": about.repository is not None or not about.known,
        "quick_gelu": config.activation == "quick_gelu",
        "pads": how.resize == "pad",
        "training_data": Markdown("Not known: no run of `cvt finetune` left its facts here."),
        "preprocessing": rows(_preprocessing(about)),
        "training_regime": Markdown("Not known: no run of `cvt finetune` left its facts here."),
        "speeds_sizes_times": Markdown(
            f"{escaped(about.sizes())}.{_speed(about)}"
        ),
        **_measured(about),
        "model_examination": Markdown(
            f"{code(f'cvt explain IMAGE --model {argument}')} draws what an answer rests on, and "
            "with `--score` measures how true the drawing is."
        ),
        "hardware_type": "not known",
        "hours_used": "not known",
        "cloud_provider": NOT_RECORDED,
        "cloud_region": NOT_RECORDED,
        "co2_emitted": not_measured("cvt finetune --energy --country CODE"),
        "model_specs": Markdown(
            table(
                ("stage", "width", "heads", "blocks", "embedding"),
                [
                    (str(i), str(s.width), str(s.heads), str(s.depth),
                     f"{s.kernel}x{s.kernel}, stride {s.stride}")
                    for i, s in enumerate(config.stages)
                ],
            )
            + f"\n\n{activation}; class token in the last stage; no position embedding, so other "
            "sizes work too. Trained to minimise "
            + ("binary cross-entropy." if several else "cross-entropy.")
        ),
        "compute_infrastructure": "see hardware and software",
        "hardware_requirements": "any CPU; a GPU is used if there is one",
        "software": f"cvt-cli {__version__}, or transformers",
        "citation_bibtex": BIBTEX,
        "citation_apa": APA,
        "glossary": _GLOSSARY,
        "more_information": "none",
        "contradictions": Markdown(""),
        "downstream": Markdown(""),
        "model_card_authors": Markdown(
            f"{code('cvt card')} (cvt-cli {__version__}), from what was measured. What is "
            "“not stated” above is for a person to say: text that is edited here is kept."
        ),
        "model_card_contact": NOT_STATED,
    }  # fmt: skip


_GLOSSARY = Markdown(
    "Top-k: the share of images whose class is among the k likeliest. Intervals are of 95 %. "
    "MAC: a multiply-add, two floating-point operations. Fingerprint: a SHA-256 of the names, "
    "labels and contents of images. Calibration error: how far the probabilities are from the "
    "share of right answers, on average. Temperature: what the logits would be divided by for the "
    "lowest loss."
)


def _preprocessing(about: About) -> list[tuple[str, Any]]:
    how = about.described.preprocessing
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (how.mean, how.std))
    return [
        ("input", f"RGB, {how.height}x{how.width} pixels"),
        ("resizing", how.describe()),
        ("values", f"divided by 255, less the mean ({mean}), divided by ({std})"),
        ("EXIF", "prediction turns images as it says; evaluation does not, unless told"),
    ]


def _limits(about: About) -> Markdown:
    """What is known against it, each from what was measured."""
    labels = about.described.labels
    found = []
    if known := about.published:
        found += published_facts.limits(known)
        found.append("Accuracy by groups of people or places: not published.")
    elif labels.several:
        found.append(
            "It says of each of its classes whether the picture shows it, perhaps of none. The "
            "thresholds were chosen on validation images, so F1 on others may be lower."
        )
    else:
        found.append("It answers with one of its classes whatever the picture shows.")
    for document in _evaluated(about):
        where = shown_results.data_name(document)
        if worst := shown_results.worst_class(document):
            found.append(f"On {escaped(where)} the worst class is {escaped(worst)}.")
        if told := shown_results.confusions(document):
            found.append(told)
    if about.known and about.known.embedded:
        found.append(
            "It sees 32x32 pixels: of a photograph, the centre square. It is for demonstrations, "
            "tests, and as a start for small images."
        )
    return Markdown("\n".join(f"- {line}" for line in found))


def _speed(about: About) -> str:
    found = about.record.of("benchmark")
    if not found:
        line = not_measured(_command(about, f"cvt benchmark {about.argument}"), "the speed; ")
        return f"\n\n{line}"
    return "".join(f"\n\n{shown_results.benchmark(one)}" for one in found)


def _measured(about: About) -> Fields:
    """What evaluations, benchmarks and exports measured."""
    documents, trained = _evaluated(about), about.record.training
    command = _command(about, f"cvt evaluate DATA --model {about.argument}")
    found: Fields = {"exports": Markdown("")}
    if exported := about.record.of("export"):
        found["exports"] = shown_results.exports(exported)
    joules = any(row.get("joules_per_image") for one in about.record.of("benchmark")
                 for row in one["rows"])  # fmt: skip
    found["energy_of_use"] = (
        Markdown("")
        if joules
        else not_measured(_command(about, f"cvt benchmark {about.argument} --energy"),
                          "the energy of an answer; ")
    )  # fmt: skip
    found["robustness"] = Markdown(
        f"{NOT_MEASURED}changed pictures and unknown inputs; no command of `cvt` measures these."
    )
    if not documents:
        found |= {
            "testing_data": not_measured(command),
            "testing_factors": "none",
            "testing_metrics": "none",
            "results": not_measured(command) if not trained else Markdown(""),
            "results_summary": Markdown(""),
            "classes": Markdown(""),
            "groups": Markdown(""),
            "calibration": Markdown(""),
        }
        if trained:
            found["results"] = training.validation(trained)
            found["results_summary"] = not_measured(command, "on other images than those; ")
            found["testing_data"] = "the validation images; no others were evaluated"
            if fold_n := trained.get("fold_n"):
                where = "the cross-validation that it is of, in its `folds.csv`"
                found["results_summary"] = Markdown(
                    f"On the {counted(fold_n, 'image')} of its fold, which it has not seen: see "
                    f"{where}."
                )
                found["testing_data"] = Markdown(
                    "the validation images; those of its fold were measured on by " + where
                )
            found["testing_metrics"] = "those below"
        return found
    several = any(map(shown_results.is_several, documents))
    grouped = [one for one in documents if one["groups"]]

    def each(show: Any) -> Markdown:
        parts = []
        for one in documents:
            if text := show(one):
                head = f"{escaped(shown_results.data_name(one))}:\n\n" * (len(documents) > 1)
                parts.append(head + text)
        return Markdown("\n\n".join(parts))

    shown = [shown_results.evaluation(one, trained) for one in documents]
    if trained and not any(shown_results.was_chosen_by(one, trained) for one in documents):
        shown.append(training.validation(trained))
    found |= {
        "testing_data": Markdown("; ".join(
            f"{code(shown_results.data_name(one))}, {counted(one['n'], 'image')}, "
            f"{shown_results.part_of(one, trained)}" for one in documents)),
        "testing_factors": "classes" + (", and groups" if grouped else "; the data name no groups"),
        "testing_metrics": "mean average precision, F1, AUC" if several else
        "top-1 and top-k accuracy, balanced accuracy, F1, AUC, calibration",
        "results": Markdown("\n\n".join(shown)),
        "results_summary": Markdown(_summary(documents, trained)),
        "classes": each(shown_results.classes),
        "groups": each(shown_results.groups),
        "calibration": each(shown_results.calibration),
    }  # fmt: skip
    return found


def _summary(documents: list[dict[str, Any]], trained: Mapping[str, Any] | None) -> str:
    lines = []
    for one, data in zip(documents, shown_results.names_of(documents), strict=True):
        name, value = shown_results.headline(one)
        where = f"{escaped(data)}, {shown_results.part_of(one, trained)}"
        lines.append(f"{name} {value} on {where}.")
    return " ".join(lines)


def _trained(about: About, facts: Mapping[str, Any]) -> Fields:
    """What a run of `cvt finetune` left."""
    took = training.energy(facts)
    emitted = (facts.get("energy") or {}).get("co2_kg")
    found: Fields = {
        "model_summary": Markdown(training.summary(facts, len(about.described.labels))),
        "base_model": Markdown(
            "none: trained from scratch" if facts["from_scratch"]
            else code(facts["repository"] or facts["start"])
        ),
        "training_data": training.data(facts),
        "training_regime": training.procedure(facts),
        "hardware_type": facts["hardware"],
        "hours_used": training.hours(facts),
        "compute_infrastructure": Markdown(training.times(facts)),
        "hardware_requirements": facts["hardware"],
        "software": facts["software"],
        "co2_emitted": f"{1000 * emitted:.3g} g, estimated for {facts['energy']['country']}"
        + training.part_measured(facts)
        if emitted is not None
        else "not computed: no country was given (--country)" if took
        else not_measured("cvt finetune --energy --country CODE"),
        "energy_of_training": took or "",
    }  # fmt: skip
    if not took:
        # One line is enough for both: whoever measures one measures the other.
        found["co2_emitted"] = "not known; see the energy"
        found["energy_of_training"] = not_measured(
            "cvt finetune --energy", "the energy of the training; "
        )
        if any(row.get("joules_per_image") for one in about.record.of("benchmark")
               for row in one["rows"]):  # fmt: skip
            return found
        found["energy_of_use"] = Markdown("")
        found["energy_of_training"] = Markdown(
            f"{NOT_MEASURED}the energy; `cvt finetune --energy` measures that of the training, "
            "`cvt benchmark --energy` that of an answer."
        )
    return found


def _in_short(about: About, found: Fields) -> Markdown:
    """What somebody who decides looks at first."""
    labels, how = about.described.labels, about.described.preprocessing
    documents, facts = _evaluated(about), about.record.training
    pairs: list[tuple[str, Any]] = []
    for one, data in zip(documents, shown_results.names_of(documents), strict=True):
        name, value = shown_results.headline(one)
        where = shown_results.part_of(one, facts)
        pairs.append((f"{name}, {data}", f"{value}, on {where}"))
        if worst := shown_results.worst_class(one):
            pairs.append(("its worst class", worst))
    if known := about.published:
        assert known.scores is not None
        pairs.append(
            ("top-1, ImageNet-1k", f"{known.scores.top1:.2f} % ({MEASURED_BY}), "
             f"{known.scores.paper_top1} % (paper)")
        )  # fmt: skip
        pairs.append(("new photographs (ImageNet-V2)", f"{known.scores.v2} % ({MEASURED_BY})"))
        pairs.append(("by better labels (ReaL)", f"{known.scores.real} % ({MEASURED_BY})"))
    elif facts and not documents:
        told = facts["validation"]
        value = (
            shown_results.percent(told["map"]) if "map" in told
            else shown_results.share(told["correct"], facts["val_n"], told["interval"])
        )  # fmt: skip
        name = "mAP" if "map" in told else "top-1"
        if seen := told.get("trained_before"):
            value += f"; too good, since {seen} of these images were trained on before"
        pairs.append((name, f"{value}, on the images that the best epoch was chosen by"))
    pairs.append(("classes", f"{len(labels)}" + (", several an image" if labels.several else "")))
    pairs += [
        ("input", how.describe()),
        ("size", about.sizes()),
    ]
    if rates := about.record.of("benchmark"):
        best = max(rates[-1]["rows"], key=lambda row: row["images_per_sec"])
        pairs.append(
            ("speed", f"{best['images_per_sec']:.0f} images/s ({best['engine']}, "
             f"{best['precision']}, {best['batch_size']} at once; {rates[-1]['hardware']})")
        )  # fmt: skip
    pairs += [("trained on", _trained_on(about)), ("license", found["license"])]
    return rows(pairs)


def _trained_on(about: About) -> Any:
    facts = about.record.training
    if known := about.published:
        return published_facts.pretrained_on(known)
    if facts is None:
        return None
    return Markdown(f"{code(facts['data'])}, {counted(facts['train_n'], 'image')}")
