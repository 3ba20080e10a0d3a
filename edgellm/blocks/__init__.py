"""A content-addressed block store in each node, with IPFS's CIDs and wire protocol.

cid        what a block is called
store      the interface, and what every implementation promises
disk       the embedded one: files, quota, least recently used out first
kubo       one that a user's IPFS daemon keeps
exchange   blocks from and to other nodes
bitswap    the same blocks for any IPFS peer

Knows nothing of KV caches (`edgellm.kv`). Above it: `edgellm.kv`, `edgellm.hosting`, `edgellm.cli`.
"""
