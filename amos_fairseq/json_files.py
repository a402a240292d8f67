"""JSON that anyone may have written: of a regular file, and of a known form, or refused in one line.

A form is a type as annotations write it: bool, int, float, str, Any, Optional and Union, List, Tuple and Dict of such,
a NamedTuple or a dataclass, which is made of an object with just its fields, a TypedDict, which lets other keys be, and
Annotated[form, Range]. A whole number is a float, too, a bool no number; of another class, a value is an instance.
"""

import contextlib
import dataclasses
import functools
import json
import os
import types
import typing
from typing import Annotated, Any, Dict, Hashable, Union

from amos_fairseq.files import check_regular
from amos_fairseq.options import NOT_NEGATIVE
from amos_fairseq.user_errors import Damaged, unreadable_is_damaged

MOST_BYTES = 1 << 28
SHOWN = 40  # characters of a value
Natural = Annotated[int, NOT_NEGATIVE]
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def read(path: Union[str, os.PathLike], form: Any = Dict[str, Any], most: int = MOST_BYTES) -> Any:
    """The content of `path`, of at most so many bytes. Raises Damaged unless it is of `form`; a missing file is one."""
    with unreadable_is_damaged():
        check_regular(path, most)
        with open(path, "rb") as stream:
            content = stream.read()
    return parsed(content, form, path)


def parsed(content: bytes, form: Any, source: Any) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise Damaged(f"{source} is no JSON: {reason}") from None
    return formed(value, form, source)


def formed(value: Any, form: Any, source: Any, key: str = "") -> Any:
    """`value`, found under `key`, as `form` has it. Raises Damaged that names the source and the key."""
    origin, parts = typing.get_origin(form), typing.get_args(form)

    def check(right: bool, wanted: str) -> None:
        if not right:
            plain = value is None or isinstance(value, (bool, int, float, str))
            shown = json.dumps(value) if plain else {list: "a list", dict: "an object"}.get(type(value), "a tensor")
            shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}.."
            raise Damaged(f"{source}: {key or 'all of it'} is {shown}, not {wanted}")

    if form is Any:
        return value
    if origin is Annotated:
        value = formed(value, parts[0], source, key)
        for allowed in parts[1:]:
            check(allowed.holds(value), str(allowed))
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        for part in parts[1:]:
            with contextlib.suppress(Damaged):
                return formed(value, part, source, key)
        return formed(value, parts[0], source, key)
    if origin is list:
        check(isinstance(value, list), "a list")
        return [formed(item, parts[0], source, f"{key}[{place}]") for place, item in enumerate(value)]
    if origin is tuple:
        check(isinstance(value, list) and len(value) == len(parts), f"a list of {len(parts)}")
        pairs = enumerate(zip(value, parts))
        return tuple(formed(item, part, source, f"{key}[{place}]") for place, (item, part) in pairs)
    dot = f"{key}." if key else ""
    if origin is dict:
        check(isinstance(value, dict), "an object")
        return {name: formed(item, parts[1], source, f"{dot}{name}") for name, item in value.items()}
    fields = fields_of(form)
    if fields is None:
        check(type(value) in (int, float) if form is float else type(value) is form if form in WORDS
              else isinstance(value, form), WORDS.get(form, form.__name__))
        return value
    check(isinstance(value, dict), "an object")
    known, required = fields
    for name in (*required, *value):
        if name not in value:
            raise Damaged(f"{source}: {dot}{name} is absent")
        if name not in known and not typing.is_typeddict(form):
            raise Damaged(f"{source}: {dot}{name} is not known")
    built = {name: formed(item, known.get(name, Any), source, f"{dot}{name}") for name, item in value.items()}
    if typing.is_typeddict(form):
        return built
    try:
        return form(**built)
    except ValueError as error:
        raise Damaged(f"{source}: {error}") from None


@functools.cache
def fields_of(form: Hashable) -> Any:
    """(form of each field by name, names of those without default) of a class of fields; None of others."""
    if typing.is_typeddict(form):
        required = form.__required_keys__
    elif dataclasses.is_dataclass(form):
        missing = dataclasses.MISSING
        required = [f.name for f in dataclasses.fields(form) if f.default is missing and f.default_factory is missing]
    elif hasattr(form, "_field_defaults"):
        required = [name for name in form._fields if name not in form._field_defaults]
    else:
        return None
    return typing.get_type_hints(form, include_extras=True), required
