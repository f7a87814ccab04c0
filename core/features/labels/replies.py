"""Reads an endpoint's replies strictly: what is not exactly what was asked for is missing, and why is said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

LONGEST_LABEL = 300
SHOWN = 60
"""Characters of an unusable reply that its problem quotes."""

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_Text = TypeAdapter(
    Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=LONGEST_LABEL)]
)
_Rating = TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=5)])
_Numbers = TypeAdapter(list[Annotated[int, Field(strict=True)]])


@dataclass(frozen=True)
class LabelReply:
    """What a reply to the request for a label holds.

    Attributes:
        text: the description; None = missing.
        safety_rating, monosemanticity: 1..5; None = missing.
        problems: one for each thing that is missing.
    """

    text: str | None = None
    safety_rating: int | None = None
    monosemanticity: int | None = None
    problems: tuple[str, ...] = field(default=())


class ReplyError(ValueError):
    """The reply is not what was asked for; the message says how."""


def read_label(content: str) -> LabelReply:
    """Reads the reply to the request for a label, keeping every part that is valid."""
    try:
        found = json_object(content)
    except ReplyError as error:
        return LabelReply(problems=(str(error),))
    problems: list[str] = []

    def part(name: str, kind: TypeAdapter[Any]) -> Any:
        if name not in found:
            problems.append(f"no {name} in the reply")
            return None
        try:
            return kind.validate_python(found[name], strict=True)
        except ValidationError as error:
            problems.append(f"{name} is {_quoted(found[name])}: {error.errors()[0]['msg'].lower()}")
            return None

    text = part("description", _Text)
    if text is not None and not (text := printable(text)):
        problems.append("description is empty")
        text = None
    return LabelReply(text, part("safety_rating", _Rating), part("monosemanticity", _Rating), tuple(problems))


def read_numbers(content: str, n: int) -> set[int]:
    """Reads a list of passage numbers.

    Args:
        n: passages that were asked about; numbers run from 1 to n, each at most once.

    Raises:
        ReplyError: anything else.
    """
    found = json_object(content)
    if "numbers" not in found:
        raise ReplyError("no numbers in the reply")
    try:
        numbers = _Numbers.validate_python(found["numbers"], strict=True)
    except ValidationError as error:
        raise ReplyError(f"numbers is {_quoted(found['numbers'])}: {error.errors()[0]['msg'].lower()}") from None
    if len(set(numbers)) < len(numbers) or not all(1 <= number <= n for number in numbers):
        raise ReplyError(f"numbers is {_quoted(numbers)}: not different numbers from 1 to {n}")
    return set(numbers)


def json_object(content: str) -> dict[str, Any]:
    """The one JSON object that the reply is.

    A thought in <think> before it and a code fence around it are taken off; nothing is searched for inside other text.

    Raises:
        ReplyError: empty, not JSON, not an object, or a key stands twice.
    """
    text = content.strip()
    if text.startswith("<think>"):
        text = _THOUGHT.sub("", text, count=1).strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1].strip()
    if not text:
        raise ReplyError("the reply is empty")
    try:
        found = json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except ReplyError:
        raise
    except (ValueError, RecursionError):
        raise ReplyError(f"the reply is no JSON: {_quoted(text)}") from None
    if not isinstance(found, dict):
        raise ReplyError(f"the reply is no JSON object: {_quoted(text)}")
    return found


def _each_key_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ReplyError(f"the reply says {_quoted(key)} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ReplyError(f"the reply is no JSON: it has {name}")


def printable(text: str) -> str:
    """Text on one line; what cannot be printed (control characters, broken surrogates) becomes a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _quoted(value: Any) -> str:
    line = printable((value if isinstance(value, str) else repr(value))[: 4 * SHOWN])
    return f"“{line if len(line) <= SHOWN else line[:SHOWN] + '…'}”"
