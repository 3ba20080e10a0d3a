"""Peers and streams: the embedded libp2p node, and the border that hides it.

* `network`: the border (`Network`, `Stream`, `PeerAddress`); all that anything above may use of libp2p
* `identity`: the Ed25519 key of a peer, its file, and the lock on it
* `envelope`: libp2p signed envelopes (RFC 0002) with domains of our own
* `framing`: protobuf messages over a `Stream`, with limits and deadlines
* `varint`: the lengths of both
* `node`: `open_node`, the real `Network` on py-libp2p (TCP, Noise, Yamux, Kademlia)
* behind `node` only: `dialer` (reaching a peer), `dht` (provider records), `addresses` (what to advertise),
  `relay` (circuit v2)

Only `node` and what stands behind it import libp2p; the rest is cheap. Nothing here knows of models, adverts,
plans or leases.
"""
