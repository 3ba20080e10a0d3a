"""A content-addressed block store in each node, with IPFS's CIDs.

cid        what a block is called
store      the interface, and what every implementation promises
disk       the embedded one: quota, least recently used out first
files      its blocks on disk
ledger     what it remembers of each
kubo       one that a user's IPFS daemon keeps (`kubo_rpc`: the daemon's RPC; `kubo_ledger`: which of its blocks are ours)
exchange   blocks from and to other nodes
bitswap    the same with IPFS peers of any make
link       what is known of the way to one

Knows nothing of KV caches (`edgellm.kv`). Above it: `edgellm.kv`, `edgellm.hosting`, `edgellm.cli`.
"""
