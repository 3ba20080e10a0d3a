"""A session opened for this process, or one that is open already."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil

from edgellm.client.connection import Connection
from edgellm.client.options import SessionOptions, order_of, require_known, texts, timeout_of
from edgellm.client.results import Hop
from edgellm.errors import SessionError, UsageError
from edgellm.models.light import LightStore
from edgellm.paths import default_paths
from edgellm.sessions.client import ProgressLine, close_session, gone, session_state, start_session
from edgellm.sessions.registry import Registry
from edgellm.swarms.chosen import chosen_name, require_peers, swarm_called
from edgellm.wire import session_pb2

OF_A_REQUEST = frozenset({"timeout_s"})
"""Options that are none of the session's own, and hold for one that is open, too."""


class OpenSession:
    """An open session, and the connection to it. Safe in any number of threads."""

    def __init__(self, registry: Registry, name: str, *, is_ours: bool, timeout_s: float) -> None:
        """Raises SessionError when the session is not there or not ready."""
        state = session_state(registry, name)
        files = registry.files(name)
        if state.description is None:
            raise gone(state, files)
        if state.description.state != "ready":
            raise SessionError(f"session {name!r} is still starting", remedy="ask again in a moment")
        self.description: session_pb2.Description = state.description
        """As of the last request: `edgellm session swap` puts another model behind a session."""
        self.connection = Connection(name, files, timeout_s, self._notice)
        self._registry = registry
        self._is_ours = is_ours
        self._lock = threading.Lock()
        self.is_closed = False

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def route(self) -> tuple[Hop, ...]:
        return tuple(
            Hop(stage.name, stage.peer, stage.first_layer, stage.end_layer)
            for stage in self.description.stages
        )

    def model_directory(self) -> Path:
        """Where configuration and tokenizer of the model are. Raises SessionError when they are gone."""
        held = LightStore(default_paths().cache / "models").find(self.description.digest)
        if held is None:
            raise SessionError(
                f"configuration and tokenizer of {self.description.model} are not in the cache any more",
                remedy="open a session again, which fetches them",
            )
        return held.directory

    def _notice(self, digest: str) -> None:
        if digest == self.description.digest:
            return
        described = session_state(self._registry, self.name).description
        # Between two clusters a session describes none, and one that ends nothing; the next request asks again.
        if described is not None and described.digest:
            self.description = described

    def close(self) -> None:
        """Ends what still runs, and the session if it was opened here; returns when all of it is gone. Again: nothing."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
        self.connection.close()
        if self._is_ours:
            try:
                close_session(self._registry, self.name)
            except SessionError:
                # It has closed itself meanwhile.
                return


def open_session(
    model: str | None,
    session: str | None,
    options: SessionOptions,
    give_up: threading.Event | None = None,
    *,
    whose: str,
) -> OpenSession:
    """Uses the open `session`, or opens one for `model` that lives no longer than this process.

    Blocks until it is ready, or `give_up` is set. Raises what its daemon met: DiscoveryError, PlanError, LeaseError and so on.
    `whose` is what the caller called, for messages.
    """
    if (model is None) == (session is None):
        raise UsageError(f"{whose} needs either a model or session=…", remedy=f'{whose}("Qwen/Qwen3-8B")')
    require_known(options, whose)
    timeout_s = timeout_of(options)
    paths = default_paths()
    registry = Registry.of(paths)
    if session is not None:
        if too_late := options.keys() - OF_A_REQUEST:
            raise UsageError(
                f"session {session!r} is open already: {', '.join(sorted(too_late))} cannot be changed",
                remedy="leave them out, or give a model instead of session=…",
            )
        return OpenSession(registry, session, is_ours=False, timeout_s=timeout_s)
    assert model is not None
    if not isinstance(model, str) or not model:
        raise UsageError(f"{model!r} is no model's name", remedy=f'{whose}("Qwen/Qwen3-8B")')
    swarm = chosen_name(options.get("swarm"), paths)
    bootstrap = require_peers(
        texts("bootstrap", options.get("bootstrap", ())),
        swarm_called(swarm, paths),
        paths,
        mdns=options.get("mdns", False),
    )
    name, files = registry.reserve(options.get("name"))
    try:
        order = order_of(
            model,
            options,
            name=name,
            directory=str(files.directory),
            bootstrap=bootstrap,
            owner=(os.getpid(), psutil.Process().create_time()),
            swarm=swarm,
        )
    except BaseException:
        registry.remove(name)
        raise
    on_progress = options.get("on_progress") or _quiet
    start_session(registry, order, files, on_progress, give_up)
    try:
        return OpenSession(registry, name, is_ours=True, timeout_s=timeout_s)
    except BaseException:
        close_session(registry, name)
        raise


def _quiet(line: ProgressLine) -> None:
    """Tells nobody."""
