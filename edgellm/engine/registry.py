"""Finds engines: whatever is registered in the entry point group `edgellm.backends`."""

from __future__ import annotations

from importlib.metadata import entry_points

from edgellm.engine.backend import Backend
from edgellm.errors import EngineError

GROUP = "edgellm.backends"
DEFAULT = "vllm"


def backend_names() -> tuple[str, ...]:
    """Names of the installed backends, sorted. Imports none of them."""
    return tuple(sorted(point.name for point in entry_points(group=GROUP)))


def load_backend(name: str = DEFAULT) -> Backend:
    """The installed backend of that name; raises EngineError with a remedy when there is none or it cannot load."""
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        known = ", ".join(backend_names()) or "none"
        raise EngineError(
            f"no backend named {name!r} is installed (installed: {known})",
            remedy=f"pip install 'edgellm-{name}[cpu]' or 'edgellm-{name}[cuda]'",
        )
    try:
        backend = points[0].load()
    except (ImportError, AttributeError) as error:
        raise EngineError(
            f"the backend {name!r} cannot be loaded: {error}",
            remedy=f"pip install --force-reinstall --no-deps edgellm-{name}",
        ) from error
    if not isinstance(backend, Backend):
        raise EngineError(
            f"the backend {name!r} does not implement edgellm.engine.backend.Backend",
            remedy=f"install a version of edgellm-{name} that matches this edgellm",
        )
    return backend
