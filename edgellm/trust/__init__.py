"""Trust: what this user has seen of hosts, and what follows from it. Nobody else's opinion counts, and nobody is told of it.

receipt    what a host did in a lease, signed by requester and host <-> the envelopes that travel (pure)
settle     a requester's side of receipts, at the end of its leases
accounts   a host's side: what it signs, and what it remembers of what it lent
ledger     receipts, failures and checks, kept in SQLite by several processes at once
score      from these to a standing: trusted, new, to be avoided or caught (pure)
compare    whether two engines said the same of a piece of text (pure)
verdict    from statements about one answer, and from all answers before it, to who computed wrongly (pure)
book       what a requester keeps and consults of all this

Answers are recomputed by `edgellm.requester.spot_check`.

Requesters have a new identity for each question, hosts keep theirs: so this is about hosts.
"""
