"""Leases: a host's promise of devices to one requester, for as long as the stream between them beats.

lease   the life of a lease, and the book of a host's leases (pure)
terms   what a requester asks of one host <-> the wire (pure)
codec   the signed ClusterPlan <-> the envelope that travels (pure)
policy  whom a host lends to (pure)
patience how long devices are kept for requesters that send no plan (pure)
account what a host may still lend: the border to its quota
accept  whether a host may act on a signed plan (pure)
serve   a host's side: grant, wait for the plan, run it, end it
hold    a requester's side: reserve on all hosts or on none, commit, hear their news, let go

The stream is the lease: when it ends, or falls silent for `SILENCE_S`, both sides act as if the other had died.
"""

PROTOCOL = "/edgellm/lease/1"

HEARTBEAT_S = 0.5
SILENCE_S = 4.0
"""Without a word for so long, the other side is taken for dead. Death is to be noticed within 5 s."""
COMMIT_S = 20.0
"""How long a host keeps devices for a requester that has reserved them and not yet sent its plan."""
