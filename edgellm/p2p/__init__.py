"""Peers and streams: the embedded libp2p node, and the border that hides it.

* `network`: the border (`Network`, `Stream`, `PeerAddress`); all that anything above may use of libp2p
* `identity`: the Ed25519 key of a peer, its file, and the lock on it
* `envelope`: libp2p signed envelopes (RFC 0002) with domains of our own
* `framing`: protobuf messages over a `Stream`, with limits and deadlines
* `doorkeeper`: the border to whoever decides which peers a node has to do with
* `varint`: the lengths of both
* `node`: `open_node`, the real `Network` on py-libp2p (TCP, Noise, Yamux, Kademlia)
* behind `node` only, for finding and reaching peers: `dialer`, `dht` (provider records), `lookup` (whom to ask for them;
  knows nothing of libp2p), `providers` (one question to one peer), `mdns` (the local network), `addresses` (what to listen
  on and advertise), `connections` (direct or relayed)
* behind `node` only, for being reached behind routers: `nat` (keeps a node reachable), on `identify` and `autonat` (what others
  say), `reachability` (what follows from it; pure), `port_mapping` (UPnP, NAT-PMP), `relay` (using circuit v2), `relay_server`
  and `relay_limits` (being one; the limits are pure), `punch` (from a relayed connection to a direct one)
* behind `node` only, for surviving them: `tcp` and `muxer` (hardened), `streams` and `handlers` (the border's
  streams, the guard around their handlers), `greeting` (Noise with a doorkeeper behind it), `watchdog` (has it stopped
  serving?), `shutdown` (a prompt end), `quiet` (libp2p's log)

Only `node` and some of what stands behind it import libp2p; the rest is cheap. Nothing here knows of models, adverts,
plans or leases.
"""
