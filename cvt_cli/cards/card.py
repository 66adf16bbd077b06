"""A model card: composed of what is known of a checkpoint, written over the one before, checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt_cli.base import files, text
from cvt_cli.base.errors import CheckpointError
from cvt_cli.base.limits import LARGEST_CONFIG_BYTES
from cvt_cli.base.progress import Say
from cvt_cli.cards import header, markdown, parts
from cvt_cli.cards.about import About
from cvt_cli.cards.fields import NOT_MEASURED, NOT_STATED, fields
from cvt_cli.cards.parts import Merged
from cvt_cli.checkpoints import folders

NEEDED = "[More Information Needed]"
"""What the hub's template says of a field that nobody filled."""

WANTED = ("license", "library_name", "pipeline_tag", "tags", "model-index")
"""Of the header, what the hub's pages and search are made of."""

HEADINGS = (
    "Model Details", "Uses", "Bias, Risks, and Limitations", "Training Details", "Evaluation",
    "Environmental Impact", "Technical Specifications", "Citation",
)  # fmt: skip
"""The sections of the hub's template that every card has."""


def compose(about: About, before: str | None = None) -> Merged:
    """The card of a checkpoint.

    Args:
        about: what is known of it.
        before: the card that there is, with the marks of this template.
    """
    return parts.merged(header.header(about), _written(about), before)


def _written(about: About) -> dict[str, str]:
    """The text of each part, by name."""
    template = markdown.environment().get_template("card.md")
    context = template.new_context(fields(about))
    return {
        name: re.sub(r"\n{3,}", "\n\n", "".join(block(context)).strip())
        for name, block in template.blocks.items()
    }


def why_not_shown(about: About) -> str:
    """What keeps a card from showing what is known, as the first words of a damaged value's error;
    empty where nothing does. What is known may come from files of others."""
    try:
        header.header(about), header.entries(about), _written(about)
    except (  # what a value of another type, or one that is missing, ends in
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration,
    ) as error:  # fmt: skip
        return f"{type(error).__name__}: {error}"
    return ""


def read(path: Path) -> str | None:
    """A card, its lines ended as ours are; None where there is none.

    Raises:
        CheckpointError: it cannot be read, is not UTF-8, or larger than any card.
    """
    try:
        found = text.read_text(path, most=LARGEST_CONFIG_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"`{path}` cannot be read: {reason}") from None
    return found.replace("\r\n", "\n")  # of an editor on Windows


def before_in(folder: Path, *, overwrite: bool = False) -> str | None:
    """The card that a folder has, to be written over; None where there is none, or none to keep.

    Raises:
        CheckpointError: somebody else wrote it, and it may not be replaced; or it is no text.
    """
    path = folder / folders.CARD_FILE
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"`{path}` is not a regular file")
    found = read(path)
    if found is None or parts.is_ours(found):
        return found
    if overwrite:
        return None
    raise CheckpointError(
        f"`{path}` has no marks of `cvt card`, so its text cannot be told from what was edited",
        hint="--overwrite replaces it; or write the card elsewhere: cvt card MODEL --output FILE",
    )


def save(folder: Path, about: About, *, overwrite: bool = False) -> Merged:
    """Write a checkpoint's card, its record and the hub's file of results into its folder.

    Raises:
        CheckpointError: see `before_in` and `parts.merged`.
        CvtError: they cannot be written.
    """
    made = compose(about, before_in(folder, overwrite=overwrite))
    write(folder, about, made.text)
    return made


def write(folder: Path, about: About, card: str) -> None:
    """Write a card that is composed, with what belongs to it; the card comes last."""
    import yaml

    about.record.write(folder)
    path = folder / header.EVAL_RESULTS
    if found := header.entries(about):
        files_folder(path)
        content = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10_000)
        files.write_text(path, content)
    else:
        remove(path)
    files.write_text(folder / folders.CARD_FILE, card)


def files_folder(path: Path) -> None:
    """Make the folder of a file; raises CvtError if that cannot be."""
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise files.unwritable(path, error) from error


def remove(path: Path) -> None:
    """Remove a file that may not be there; raises CvtError if that cannot be."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise files.unwritable(path, error) from error


def say_changes(made: Merged, path: Path, say: Say) -> None:
    """Say what of a card is written anew, and what was edited and is kept."""
    if made.kept:
        say(
            f"`{path}`: edited by hand and kept as it is: {', '.join(made.kept)}; what is removed "
            "with its marks is written again"
        )
    if made.changed:
        say(f"`{path}`: written anew: {', '.join(made.changed)}")
    else:
        say(f"`{path}`: nothing has changed")


@dataclass(frozen=True)
class Checked:
    """What a card lacks."""

    lacks: tuple[str, ...]  # what is empty or missing
    not_measured: tuple[str, ...]  # what the card says was not measured, as it says it
    not_stated: tuple[str, ...]  # fields that only a person can fill
    edited: tuple[str, ...]  # parts that were edited by hand

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        names = ("lacks", "not_measured", "not_stated", "edited")
        return {name: list(getattr(self, name)) for name in names}


def check(content: str) -> Checked:
    """What a card lacks, whoever wrote it.

    Args:
        content: of the file.
    """
    lacks = []
    try:
        found: Mapping[str, Any] = parts.header_of(content)
        lacks += [f"the header has no `{name}`" for name in WANTED if not found.get(name)]
        lacks += _wrong_results(found)
    except CheckpointError as error:
        lacks.append(str(error))
    body = parts.body_of(content)
    headings = re.findall(r"^#{1,6} +(.+)$", body, re.MULTILINE)
    plain = {heading.partition(" [")[0].strip() for heading in headings}
    lacks += [f"there is no section `{name}`" for name in HEADINGS if name not in plain]
    section, not_measured, not_stated = "", [], []
    for line in body.splitlines():
        if match := re.match(r"#{1,6} +(.+)$", line):
            section = match[1].strip()
        label = re.match(r"- \*\*(.+?):\*\*", line)
        where = label[1] if label else section
        if NEEDED in line:
            lacks.append(f"`{where}` is not filled: {NEEDED}")
        if NOT_MEASURED in line:
            not_measured.append(f"{section}: {line.partition(NOT_MEASURED)[2]}")
        if line.strip().endswith((f":** {NOT_STATED}", f"| {NOT_STATED} |")) or (
            line.strip() == NOT_STATED
        ):
            not_stated.append(where)
    return Checked(
        tuple(lacks), tuple(not_measured), tuple(not_stated), tuple(parts.edited(content))
    )


def _wrong_results(found: Mapping[str, Any]) -> Sequence[str]:
    """What the hub's client says of the results in a header."""
    if not found.get("model-index"):
        return []
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        model_index_to_eval_results(found["model-index"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return [f"the results in the header (`model-index`) cannot be read: {error!r}"]
    return []
