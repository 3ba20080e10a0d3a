"""A cluster: head and workers, one engine, one model, joined by the overlay.

assemble     planner's stages + granted leases -> the ClusterPlan that is signed (pure)
door         how other members reach this one's cell: an ephemeral certificate and a listening socket
switchboard  overlay connections that come and go as libp2p streams, checked against the signed plan
scratch      a directory for each running member, and the sweeping of what killed nodes left (files)
commons      paths that all members without a sandbox have in common (files)
member       one member's overlay and cell, for the head and for workers alike
head         the requester's bring-up: commit the plan, run the head, load the engine

`hosting.runner` uses door and member; `requester` uses everything.
"""
