"""KV cache as a resource of the swarm: what pieces are called, who may read them, where they are, whether to fetch them.

region      layers and heads; which pieces cover what a rank owns
namespace   everything that fixes the bytes of a piece besides the tokens
scope       who can read: keys of a session, a swarm, everybody
names       what a chunk is called: nothing that an outsider can tell a prompt by
seal        encryption bound to what a piece is
records     who holds a piece in which blocks: signed, expiring
ahead       blocks that come before a cell asks for each
gate        fetch or recompute
index       the records that a node knows
figures     what sharing did, in numbers
report      that, and how much is kept, from this machine's files
distrust    holders that are avoided for a while
holdings    what a node has: blocks, records, links to others
providers   who has anything of a scope that several requesters share (DHT)
exchange    what nodes ask each other about pieces (`/edgellm/kv/1`)
announcer   tells the tracker, in batches, in the background
sharing     what one lease may do: find, fetch, store, report
transfer    one piece on its way to or from a cell
service     the same for its cell (`proto/blocks.proto`)
node        all of it, for a host
tracker     a requester's part: the records of its scopes

Calls go service -> sharing -> holdings -> index, `edgellm.blocks`; and sharing -> exchange -> another node's tracker or node.
`region`, `namespace`, `scope`, `names`, `seal` are imported by cells too: nothing in them needs a node.
"""
