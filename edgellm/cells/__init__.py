"""Cells: the sandboxes in which engine processes run, one per lease (host) or cluster (requester).

Outside a cell, in the node:
* `spec`: what a cell is to be (frozen dataclasses, no effects).
* `filesystem`: which parts of this machine's file system a cell needs to run Python at all.
* `bubblewrap`: pure function from the two to bwrap's arguments.
* `cell`: starts a cell, owns its process and kills it; the only module that the rest of the node calls.

Inside a cell, standard library only, so that a cell starts in a fraction of a second:
* `init`: first program of the cell: network, fences, then the engine.
* `network`: the interface `edge0` and the nftables redirect.
* `fences`: capabilities, no_new_privs and the seccomp filter, applied before any engine code runs.

Import nothing here: `python -m edgellm.cells.init` would pay for it.
"""
