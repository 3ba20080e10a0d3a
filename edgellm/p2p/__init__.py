"""Peers and streams: the embedded libp2p node, and the border that hides it.

* `network`: the border (`Network`, `Stream`, `PeerAddress`); everything above uses this and nothing else of libp2p
* `identity`: the Ed25519 key of a peer, its file, and the lock on it
* `envelope`: libp2p signed envelopes (RFC 0002) with domains of our own
* `framing`: protobuf messages over a `Stream`, with limits and deadlines
* `node`: `open_node`, the real `Network` on py-libp2p (TCP, Noise, Yamux, Kademlia); the one entry to the rest:
  `dialer` (reaching a peer), `dht` (provider records), `addresses` (what to advertise), `relay` (circuit v2)

The first four import no libp2p and are cheap; only `node` and what stands behind it do. Nothing here knows of
models, adverts, plans or leases.
"""
