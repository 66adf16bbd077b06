"""What is published of one of the seven checkpoints, as fields of its card."""

from collections.abc import Mapping
from typing import Any

from cvt_cli.base.package import __version__
from cvt_cli.cards import published_facts
from cvt_cli.cards.about import About
from cvt_cli.cards.markdown import Markdown, code
from cvt_cli.cards.published_facts import AUTHORS, REFERENCE
from cvt_cli.spec.published import MEASURED_AT, MEASURED_BY

NOT_PUBLISHED = "not published"


def fields(about: About, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is published of one of the seven, in place of what holds of any checkpoint.

    Args:
        about: the checkpoint.
        found: what holds of any.
    """
    known = about.published
    assert known is not None and known.scores is not None and known.repository is not None
    scores, config = known.scores, about.described.config
    base = f"pre-trained on {published_facts.pretrained_on(known)} (paper)"
    results = published_facts.results(known)
    measured = found["results"] if about.record.of("evaluation") else ""
    return {
        "model_summary": Markdown(
            f"CvT-{known.variant.upper()} at {known.size} pixels, {base}, with a head of "
            f"{known.num_classes} classes."
        ),
        "developers": AUTHORS,
        "funded_by": NOT_PUBLISHED,
        "shared_by": f"the account microsoft on the hub, and the authors as {known.original}",
        "license": f"{known.license} (hub's card); MIT (reference)",
        "base_model": "none: trained from scratch" if known.size == 224 else base,
        "repo": Markdown(f"https://huggingface.co/{known.repository}, {REFERENCE}"),
        "training_data": Markdown(
            f"{published_facts.pretrained_on(known)} (paper). How its images were chosen, counted "
            "or cleaned for this model: not published."
        ),
        "training_regime": published_facts.procedure(known),
        "testing_data": "ImageNet-1k's validation images, ImageNet-ReaL, ImageNet-V2",
        "testing_factors": "none: by class or group it is not published",
        "testing_metrics": "top-1 and top-5 accuracy",
        "results": Markdown(f"{results}\n\n{measured}".strip()),
        "results_summary": Markdown(
            f"Cite {scores.paper_top1} % (paper); expect {scores.top1:.2f} % ({MEASURED_BY}, "
            f"{MEASURED_AT})."
        ),
        "calibration": found["calibration"] or found["testing_data"],
        "hardware_type": NOT_PUBLISHED,
        "hours_used": NOT_PUBLISHED,
        "cloud_provider": NOT_PUBLISHED,
        "cloud_region": NOT_PUBLISHED,
        "co2_emitted": NOT_PUBLISHED,
        "energy_of_training": NOT_PUBLISHED,
        "compute_infrastructure": NOT_PUBLISHED,
        "software": f"training: the reference's code, {REFERENCE}; use: cvt-cli or transformers",
        "contradictions": published_facts.contradictions(known, config),
        "downstream": published_facts.downstream(known),
        "more_information": "where the sources of this card disagree:",
        "model_card_authors": Markdown(
            f"{code('cvt card')} (cvt-cli {__version__}), from the sources that it names; the "
            "models' authors have no part in it."
        ),
        "model_card_contact": Markdown(f"of the models: {REFERENCE}/issues"),
    }
