"""Values of the command line that are right as they stand, taken without pydantic.

Typer from 0.29 on checks every value by pydantic, whose import takes a fifth of the time of a
prediction. What is certain is decided here; the rest, and everything wrong, is left to Typer.
"""

import re
from collections.abc import Callable
from typing import Any, get_args, get_origin

_DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")

_LEFT: Any = object()
"""What is left to Typer."""


def spare_pydantic(parameters: list[Any]) -> None:
    """Let parameters of a command decide plain values by themselves; without effect elsewhere."""
    for parameter in parameters:
        typers = getattr(parameter, "get_runtime_param", None)
        if typers is not None and hasattr(parameter, "type_descriptor"):
            parameter.get_runtime_param = _Plainly(parameter.type_descriptor, typers)


class _Plainly:
    """Takes the place of `get_runtime_param`, and of what that gives."""

    def __init__(self, descriptor: Any, typers: Callable[[], Any]) -> None:
        # A command may be run again in one process.
        self._typers: Callable[[], Any] = typers._typers if isinstance(typers, _Plainly) else typers
        self._annotation, self._info = descriptor.annotation, descriptor.parameter_info

    def __call__(self) -> "_Plainly":
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """As Typer's."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        found = self._of_several(value) if several else self._of_one(value, self._annotation)
        return self._typers().coerce(value, param=param, ctx=ctx) if found is _LEFT else found

    def _of_several(self, values: Any) -> Any:
        if get_origin(self._annotation) is not list or not isinstance(values, list | tuple):
            return _LEFT
        (one,) = get_args(self._annotation)
        found = [self._of_one(value, one) for value in values]
        return _LEFT if any(value is _LEFT for value in found) else found

    def _of_one(self, value: Any, kind: Any) -> Any:
        if self._info.parser is not None:
            try:
                return self._info.parser(value)
            except (ValueError, AssertionError):  # which Typer turns into its own error
                return _LEFT
        if kind is str and isinstance(value, str):
            return value
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int or kind is float:
            return self._number(value, kind)
        return value if isinstance(value, str) and value in get_args(kind) else _LEFT

    def _number(self, value: Any, kind: type) -> Any:
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            value = float(value) if kind is float else int(value) if value.isdecimal() else value
        least, most = self._info.min, self._info.max
        if type(value) is not kind or self._info.clamp:
            return _LEFT
        right = (least is None or value >= least) and (most is None or value <= most)
        return value if right else _LEFT
