"""Engines as the node sees them.

* `backend`: the protocol that an engine's distribution implements, and the member it is asked about.
* `registry`: finds installed backends by entry point.

Nothing here imports an engine; engines run in cells and are reached over gRPC (`proto/backend.proto`).
"""
