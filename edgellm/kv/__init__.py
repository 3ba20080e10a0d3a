"""KV cache as a resource of the swarm: what pieces are called, who may read them, where they are, whether to fetch them.

region      layers and heads; which pieces cover what a rank owns
namespace   everything that fixes the bytes of a piece besides the tokens
scope       who can read: keys of a session, a swarm, everybody
names       what a chunk is called: nothing that an outsider can tell a prompt by
seal        encryption bound to what a piece is
records     who holds a piece in which blocks: signed, expiring
gate        fetch or recompute
index       the records that a node knows
service     what a cell asks its node (`proto/blocks.proto`)
exchange    what nodes ask each other about pieces (`/edgellm/kv/1`)

`region`, `namespace`, `scope`, `names`, `seal` are imported by cells too: nothing in them needs a node.
"""
