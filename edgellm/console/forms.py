"""What forms of the pages say, made into what the API is asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import parse_qs

from pydantic import ValidationError

from edgellm.console import views
from edgellm.errors import UsageError

MAX_FIELDS = 32

Asked = TypeVar("Asked", views.NewSession, views.NewHost, views.Swap)

_ORDER = {
    "model": "",
    "name": "",
    "idle_minutes": "15",
    "tp": "",
    "pp": "",
    "peers": "",
    "context": "",
    "sequences": "4",
    "kv_share": "",
}
_LEND = {"model": "", "memory_bytes": "2GiB", "name": "", "devices": "", "threads": ""}


@dataclass(frozen=True, slots=True)
class Filled:
    """A form as it is shown: what is in its fields, and what is wrong with them."""

    form: str
    """Begins the ids of its fields."""
    fields: Mapping[str, str]
    errors: Mapping[str, str] = field(default_factory=dict)
    given: bool = False
    """Somebody sent it, and it is shown again."""

    def __getitem__(self, name: str) -> str:
        return self.fields[name]

    def with_errors(self, errors: Mapping[str, str]) -> Filled:
        return Filled(self.form, self.fields, errors, given=True)


@dataclass(frozen=True, slots=True)
class Understood(Generic[Asked]):
    """A form that makes sense."""

    asked: Asked
    filled: Filled


EMPTY_ORDER = Filled("order", _ORDER)
EMPTY_LEND = Filled("lend", _LEND)


def fields_of(body: bytes) -> dict[str, str]:
    """The first value of each field, without blanks around it. Raises UsageError for what no form of ours sends."""
    try:
        parsed = parse_qs(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ValueError as error:
        raise UsageError("that is no form of this console", remedy="reload the page and try again") from error
    return {name: values[0].strip() for name, values in parsed.items()}


def new_session(given: Mapping[str, str]) -> Understood[views.NewSession] | Filled:
    """What the form for a new session asks; the form with its errors where that cannot be."""
    filled = Filled("order", _ORDER | {name: given[name] for name in _ORDER if name in given}, given=True)
    values: dict[str, object] = {
        name: filled[name] for name in ("model", "name", "tp", "pp", "context", "sequences") if filled[name]
    }
    values["peers"] = [peer.strip() for peer in filled["peers"].split(",") if peer.strip()]
    values["kv_share"] = bool(filled["kv_share"])
    try:
        values["idle_s"] = 60 * float(filled["idle_minutes"] or _ORDER["idle_minutes"])
    except ValueError:
        return filled.with_errors({"idle_minutes": "a number of minutes"})
    return _understood(views.NewSession, values, filled)


def new_host(given: Mapping[str, str]) -> Understood[views.NewHost] | Filled:
    """What the form for a host of this machine asks; the form with its errors where that cannot be."""
    filled = Filled("lend", _LEND | {name: given[name] for name in _LEND if name in given}, given=True)
    values: dict[str, object] = {name: value for name, value in filled.fields.items() if value}
    return _understood(views.NewHost, values, filled)


def swap(given: Mapping[str, str]) -> Understood[views.Swap] | Filled:
    """Which model shall answer instead."""
    filled = Filled("swap", {"model": given.get("model", "")}, given=True)
    return _understood(views.Swap, dict(filled.fields), filled)


def _understood(
    kind: type[Asked], values: Mapping[str, object], filled: Filled
) -> Understood[Asked] | Filled:
    try:
        return Understood(kind.model_validate(values, strict=False), filled)
    except ValidationError as error:
        return filled.with_errors(
            {
                _field(finding["loc"]): _words(str(finding["type"]), finding["msg"])
                for finding in error.errors()
            }
        )


def _field(place: tuple[int | str, ...]) -> str:
    name = str(place[0]) if place else "model"
    return "idle_minutes" if name == "idle_s" else name


def _words(kind: str, message: str) -> str:
    """Pydantic's patterns mean nothing to people."""
    known = {
        "missing": "must be filled in.",
        "string_too_short": "must be filled in.",
        "string_too_long": "is too long.",
        "string_pattern_mismatch": "has characters that are not possible here.",
        "int_parsing": "must be a whole number.",
    }
    plain = message.removeprefix("Value error, ").replace("Input should", "must").rstrip(".")
    return known.get(kind) or f"{plain}."
