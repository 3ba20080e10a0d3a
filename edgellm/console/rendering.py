"""Templates made into pages. Whatever is put into one is escaped, wherever it came from."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path

import jinja2
from starlette.responses import HTMLResponse, Response

from edgellm import __version__
from edgellm.console.timeline import seconds, stage_label
from edgellm.types.quantity import format_bytes


def rendered(template: str, status: int = 200, **shown: object) -> Response:
    """The page that `template` makes of `shown`. A name that the template asks for and is not there is an error."""
    return HTMLResponse(_templates().get_template(template).render(version=__version__, **shown), status)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgellm.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "bytes": format_bytes,
        "seconds": seconds,
        "perhaps_seconds": _perhaps_seconds,
        "percent": _percent,
        "clock": _clock,
        "iso": _iso,
        "short_model": _short_model,
        "stage_label": stage_label,
    }
    environment.filters |= filters
    return environment


def _perhaps_seconds(value: float | None) -> str:
    return "–" if value is None else seconds(value)


def _percent(value: float) -> str:
    return f"{value:.3f}%"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")


def _short_model(model: str) -> str:
    """A directory of this machine by its name, as the swarm knows it."""
    return Path(model).name if model.startswith(("/", "~", ".")) else model
