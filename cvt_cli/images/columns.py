"""What the columns of a table of images mean: guessed by their names, or as the user says."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cvt_cli.base import text
from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.images import finding
from cvt_cli.images.table_files import Table, repeated

Role = Literal["path", "label", "split", "group", "weight"]

ROLES: tuple[Role, ...] = get_args(Role)

_NAMES: dict[Role, tuple[str, ...]] = {
    "path": (
        *("path", "file", "filename", "filepath", "filenames", "files", "imagepath", "imagefile"),
        *("imagefilename", "imgpath", "image", "img", "images", "picture", "photo", "url"),
        *("imageurl", "address", "imagename", "pathtofile", "relativepath", "relpath"),
        *("filepaths", "imagepaths", "imagefiles", "paths"),
    ),
    "label": (
        *("label", "labels", "class", "classes", "classname", "category", "target", "y"),
        *("species", "labelname", "groundtruth", "diagnosis", "tag", "tags"),
    ),
    "split": ("split", "subset", "partition", "part", "set", "usage", "phase"),
    "group": (
        *("group", "groups", "groupid", "patient", "patientid", "subject", "subjectid"),
        *("video", "videoid", "camera", "cameraid", "clip", "clipid", "sequence", "sequenceid"),
    ),
    "weight": ("weight", "weights", "sampleweight", "imageweight"),
}
"""What columns are called, in small letters, without blanks and signs."""


@dataclass(frozen=True)
class Columns:
    """Which column has which part; None where there is none."""

    path: str | None  # of the pictures' paths, addresses or names
    picture: str | None  # of the pictures themselves
    label: str | None = None
    classes: tuple[str, ...] = ()  # those of 0 and 1, one for each class, in place of a label
    split: str | None = None
    group: str | None = None
    weight: str | None = None
    guessed: tuple[Role, ...] = ()
    notes: tuple[str, ...] = ()  # what was not taken, and why

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the columns that are to be read."""
        parts = (self.path, self.picture, self.label, self.split, self.group, self.weight)
        named = [name for name in parts if name is not None]
        return tuple(dict.fromkeys([*named, *self.classes]))

    def describe(self) -> str:
        """Which column was taken for what, for a person."""
        words: dict[str, str | None] = {
            "image" if self.picture else "path": self.picture or self.path,
            **{role: getattr(self, role) for role in ROLES[1:]},
        }
        told = ", ".join(f"{role} `{name}`" for role, name in words.items() if name is not None)
        if self.classes:
            told += f", a column of 0 and 1 for each class: {text.some(self.classes)}"
        named = [role for role in self.guessed if not (role == "label" and self.classes)]
        guessed = " and ".join("image" if r == "path" and self.picture else r for r in named)
        return told + (f"; guessed by name: {guessed}" if guessed else "")


def parse(told: str | None) -> dict[Role, str]:
    """What follows ``--columns``: "path=file,label=species"; an empty name is no column.

    Raises:
        UsageError: it is nothing of the kind.
    """
    found: dict[Role, str] = {}
    if told is None:
        return found
    roles = "|".join(ROLES)
    for part in re.split(rf",(?=\s*(?:{roles})\s*=)", told):  # a column's name may have commas
        role, sign, name = part.partition("=")
        role = role.strip()
        if not sign or role not in ROLES:
            known = ", ".join(ROLES)
            raise UsageError(
                f"--columns: `{part}` is not a part and its column; the parts are {known}",
                hint="write it as --columns path=file,label=species",
            )
        if role in found:
            raise UsageError(f"--columns names two columns as the {role}")
        found[role] = name.strip()
    return found


def choose(table: Table, told: dict[Role, str], label: bool = True) -> Columns:
    """Which columns of a table have which part.

    Args:
        table: whose columns these are.
        told: by the user (`parse`).
        label: whether it needs a label.

    Raises:
        DataError: a column is not there, or two could have a part that is needed, or none, or it
            cannot be told which columns are those of classes.
    """
    names, notes = table.columns, []
    found: dict[Role, str | None] = dict.fromkeys(ROLES)
    classes: tuple[str, ...] = ()
    for role, name in told.items():
        if name and name not in names:
            listed = tuple(part.strip() for part in name.split(","))
            if role != "label" or len(listed) < 2 or not set(listed) <= set(names):
                raise _not_there(table, name, f"--columns {role}={name}")
            classes = listed
            continue
        found[role] = name or None
    taken = {*told.values(), *classes}
    guessed: list[Role] = []
    for role in ROLES:
        if role in told or (role != "path" and not label):
            continue
        could = [n for n in names if _plain(n) in _NAMES[role] and n not in taken]
        if role == "path" and (holding := [n for n in could if n in table.holding_bytes]):
            could = holding
        if len(could) > 1:
            both = " and ".join(f"`{name}`" for name in could)
            if role in ("path", "label"):
                raise DataError(
                    f"{both} of `{table.path}` could {'both' if len(could) == 2 else 'all'} be "
                    f"the {role}",
                    hint=f"say which: --columns {role}={could[0]}",
                )
            notes.append(
                f"{both} of `{table.path}` could be the {role}, and none is taken; "
                f"--columns {role}={could[0]} takes the first"
            )
        elif could:
            found[role] = could[0]
            guessed.append(role)
    if label and found["label"] is None and not told.get("label"):
        used = {name for name in found.values() if name is not None}
        left = [name for name in names if name not in used and not part_flagged(name)]
        classes = _of_marks(table, left)
        for role in ("split", "group", "weight"):
            if classes and role in guessed:
                _refuse_class(table, role, found[role] or "")
        guessed += ["label"] if classes else []
    return _checked(table, found, classes, guessed, notes, label)


def role_of(name: str) -> Role | None:
    """The part that a column is known to have by its name."""
    return next((role for role in ROLES if _plain(name) in _NAMES[role]), None)


def refuse_late(table: Table, told: dict[Role, str]) -> None:
    """Raises DataError if a column would have a part, had it not first come far down in the table.

    Args:
        table: all of whose rows were read.
        told: by the user.
    """
    for name, line in table.late.items():
        role = role_of(name)
        if role is not None and role not in told:
            raise DataError(
                f"`{table.path}`: the column `{name}`, which could be the {role}, first comes near "
                f"line {line}, and was not looked for so far down",
                hint=f"let the first row have it too, as null; or say --columns {role}=, which "
                "means that there is none"
                if role in ("split", "group", "weight")
                else "let the first row have it too, as null",
            )


_MARKS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


_FLAG = re.compile("is(train|training|val|valid|validation|test|testing)(?:img|image|set|data)?")


def part_flagged(name: str) -> str | None:
    """The part that a column of 0 and 1 says images are of, such as "valid" of `is_valid`."""
    found = _FLAG.fullmatch(_plain(name))
    return found and found[1]


def mark(value: Any) -> int | None:
    """0 or 1 where a value says one of the two, else None."""
    return _MARKS.get(str(value).strip().lower())


def _of_marks(table: Table, names: Sequence[str]) -> tuple[str, ...]:
    """Those of some columns that hold nothing but 0 and 1, as far as the first rows tell.

    Raises:
        DataError: a column holds 0 and 1 in most rows that hold something, and other values or
            nothing elsewhere: a class would be left out for one empty cell.
    """
    names = [name for name in names if name not in table.holding_bytes]
    first = next(table.pieces(names), None) if len(names) > 1 else None
    if first is None:
        return ()
    marked, doubtful = [], {}
    for name in names:
        counts = Counter(map(str, first.columns[name]))
        others = {value: count for value, count in counts.items() if mark(value) is None}
        right = len(first) - sum(others.values())
        wrong = sum(count for value, count in others.items() if not _is_nothing(value))
        if not others:
            marked.append(name)
        elif right and right >= wrong:
            doubtful[name] = others
    if len(marked) + len(doubtful) < 2:
        return ()
    if doubtful:
        name, others = next(iter(doubtful.items()))
        values = first.columns[name]
        place = next(i for i, value in enumerate(values) if str(value) in others)
        raise DataError(
            f"`{table.path}` has no label column, and `{name}` may be the column of a class, with "
            f"0 and 1; {table.where} {first.lines[place]} has {values[place]!r} there",
            hint="say 0 or 1 in each row, or name those of these that are classes: --columns label="
            + ",".join(name for name in names if name in marked or name in doubtful),
        )
    return tuple(marked)


def _refuse_class(table: Table, role: Role, name: str) -> None:
    """Raises DataError if a column that has a part by its name may be that of a class, beside
    others of classes."""
    first = next(table.pieces([name]), None)
    if first is not None and set(map(mark, first.columns[name])) == {0, 1}:
        raise DataError(
            f"`{name}` of `{table.path}` could be the {role}, or a class as the other columns with "
            "0 and 1",
            hint=f"say which: --columns {role}={name}, or --columns {role}= if it is a class",
        )


def _is_nothing(value: str) -> bool:
    return value.strip().lower() in ("", "none", "nan", "na", "n/a", "null")


def _checked(
    table: Table,
    found: dict[Role, str | None],
    classes: tuple[str, ...],
    guessed: list[Role],
    notes: list[str],
    label: bool,
) -> Columns:
    """The columns, when those that are needed are there."""
    path = found["path"]
    for role in ("path", "label") if label else ("path",):
        if found[role] is None and not (role == "label" and classes):
            listed = ", ".join(f"`{name}`" for name in table.columns[:20])
            raise DataError(
                f"no column of `{table.path}` is known as the {role} by its name; it has {listed}",
                hint="its first line must name its columns"
                if any(finding.is_image_name(name) for name in table.columns)
                else f"say which it is: --columns {role}=NAME",
            )
    for role, name in found.items():
        if role != "path" and name in table.holding_bytes:
            raise DataError(
                f"the {role} `{name}` of `{table.path}` is a column of bytes, not of texts",
                hint="write it as texts (`string` in Arrow)",
            )
    used = [*(name for name in found.values() if name is not None), *classes]
    if twice := repeated(used):
        raise DataError(f"`{twice}` of `{table.path}` is named as two parts of the table")
    picture = path if path in table.holding_bytes else None
    if picture is not None:
        # What names the pictures beside them, if there is a column of paths too.
        beside = [n for n in table.columns if _plain(n) in _NAMES["path"] and n != picture]
        beside = [n for n in beside if n not in table.holding_bytes and n not in used]
        path = beside[0] if len(beside) == 1 else None
    return Columns(
        path,
        picture,
        found["label"],
        classes,
        found["split"],
        found["group"],
        found["weight"],
        tuple(guessed),
        tuple(notes),
    )


def _not_there(table: Table, name: str, option: str) -> DataError:
    listed: Sequence[str] = table.columns[:40]
    near = [known for known in table.columns if _plain(known) == _plain(name)]
    return DataError(
        f"{option}: `{table.path}` has no column `{name}`; it has "
        + ", ".join(f"`{known}`" for known in listed)
        + (", …" if len(table.columns) > len(listed) else ""),
        hint=f"`{near[0]}` is near it" if near else None,
    )


def _plain(name: str) -> str:
    """In small letters, without blanks and signs."""
    return re.sub(r"[\W_]+", "", text.as_utf8(name)).casefold()
