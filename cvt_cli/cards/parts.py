"""The parts that a card is made of, marked in its text, so that what was edited by hand is kept.

    ---
    license: mit
    # cvt: license=1f3a5c7e …
    ---

    <!-- cvt: summary 1f3a5c7e -->
    # my-run …
    <!-- /cvt -->

A mark holds a hash of what was written. A part whose text no longer has its hash was edited: it
stays as it is. What stands outside of the parts stays too.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cvt_cli.base.errors import CheckpointError

_BEGIN = re.compile(r"<!-- cvt: (\w+) ([0-9a-f]{8}) -->\n")
_END = "<!-- /cvt -->"
_HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_NOTE = re.compile(r"^# cvt: (.*)$", re.MULTILINE)

_MOST_VALUES = 100_000
"""In a header, what an alias stands for counted each time: YAML repeats with a few characters."""


@dataclass(frozen=True)
class Merged:
    """A card, and how it differs from the one before."""

    text: str
    changed: tuple[str, ...]  # parts and keys of the header that are written anew
    kept: tuple[str, ...]  # those that were edited by hand, and are as they were


@dataclass(frozen=True)
class _Part:
    """A part of a card as it is found."""

    name: str
    mark: str
    content: str
    start: int
    end: int

    @property
    def edited(self) -> bool:
        return _hash(self.content) != self.mark


def _found(text: str) -> Iterator[_Part]:
    """The parts of a card, in order; what has no end is none."""
    at = 0
    while (begin := _BEGIN.search(text, at)) and (end := text.find(_END, begin.end())) >= 0:
        at = end + len(_END)
        yield _Part(begin[1], begin[2], text[begin.end() : end], begin.start(), at)


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:8]


def _hash_of(value: Any) -> str:
    try:
        return _hash(json.dumps(value, sort_keys=True, default=str))
    except TypeError:  # YAML has keys that are no text; none of ours
        return _hash(repr(value))


def _marked(name: str, text: str) -> str:
    text = text.strip().replace("<!-- /cvt", "&lt;!-- /cvt")
    return f"<!-- cvt: {name} {_hash(text)} -->\n{text}\n{_END}"


def is_ours(text: str) -> bool:
    """Whether a card has the marks of this template."""
    return any(_found(text))


def header_of(text: str) -> dict[str, Any]:
    """The header of a card, as the hub reads it; empty where there is none.

    Raises:
        CheckpointError: it is no YAML, no table of names and values, or too large a one.
    """
    import yaml

    match = _HEADER.match(text)
    if match is None:
        return {}
    try:
        found = yaml.safe_load(match[1])
    except (  # a date or a number that there is none of is not YAMLError
        yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"the header of the model card is no YAML: {' '.join(str(error).split())}",
            hint="it stands between the two lines `---` at the top; correct it",
        ) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError("the header of the model card does not hold names and values")
    if _values(found, {}) > _MOST_VALUES:
        raise CheckpointError(
            f"the header of the model card stands for more than {_MOST_VALUES:,} values",
            hint="write them out in place of aliases (`*name`), or remove them",
        )
    return found


def _values(value: Any, known: dict[int, float]) -> float:
    """How many values there are, what several places share counted in each; what holds itself has
    no end of them."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_values(one, known) for one in inner)
    return known[id(value)]


def body_of(text: str) -> str:
    """A card without its header."""
    match = _HEADER.match(text)
    return text if match is None else text[match.end() :]


def edited(text: str) -> list[str]:
    """The parts of a card that were edited by hand."""
    return [part.name for part in _found(text) if part.edited]


def merged(header: Mapping[str, Any], parts: Mapping[str, str], before: str | None) -> Merged:
    """A card, written over the one before.

    Args:
        header: names and values, as YAML has them.
        parts: the text of each, by name, in order.
        before: the card that there is; None where there is none. It has the marks of this
            template.

    Raises:
        CheckpointError: see `header_of`.
    """
    if before is None:
        body = "\n\n".join(_marked(name, text) for name, text in parts.items())
        return Merged(f"{_written_header(header, header)}\n{body}\n", (*header, *parts), ())
    top, changed, kept = _merged_header(header, before)
    old, seen, at = body_of(before), set[str](), 0
    pieces: list[str] = []
    for part in _found(old):
        shown = old[part.start : part.end]
        now = shown
        if part.name in parts and part.name not in seen:
            seen.add(part.name)
            if part.edited:
                kept.append(part.name)
            else:
                now = _marked(part.name, parts[part.name])
                changed += [part.name] * (now != shown)
        pieces += [old[at : part.start], now]
        at = part.end
    body = "".join([*pieces, old[at:]])
    order = list(parts)
    for place, name in enumerate(order):
        if name in seen:
            continue
        changed.append(name)
        after = next((other for other in reversed(order[:place]) if other in seen), None)
        seen.add(name)
        body = _inserted(body, _marked(name, parts[name]), after)
    return Merged(f"{top}\n{body.lstrip(chr(10))}", tuple(changed), tuple(kept))


def _inserted(body: str, text: str, after: str | None) -> str:
    for part in _found(body):
        if part.name == after:
            return f"{body[: part.end]}\n\n{text}{body[part.end :]}"
    return f"{text}\n\n{body}"


def _merged_header(header: Mapping[str, Any], before: str) -> tuple[str, list[str], list[str]]:
    """The header's text, the keys that are written anew, and those that were edited."""
    found = header_of(before)
    match = _HEADER.match(before)
    note = _NOTE.search(match[1]) if match else None
    marks = dict(word.split("=", 1) for word in note[1].split() if "=" in word) if note else {}
    values, ours, changed, kept = {}, {}, [], []
    for name in dict.fromkeys([*header, *found]):
        own = name in found and marks.get(str(name)) == _hash_of(found[name])
        if name in header and (name not in found or own):
            values[name] = ours[name] = header[name]
            if found.get(name) != header[name]:
                changed.append(str(name))
        elif name in found and not own:
            values[name] = found[name]
            if name in header:
                kept.append(str(name))
    if match and values == found and not changed:
        return match[0].rstrip("\n") + "\n", changed, kept
    return _written_header(values, ours), changed, kept


def _written_header(values: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    import yaml

    content = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000)
    marks = " ".join(f"{name}={_hash_of(value)}" for name, value in ours.items())
    return f"---\n{content}# cvt: {marks}\n---\n"
