"""Private swarms: who is let in, and who is not.

certificate  membership certificates, the delegations that members sign, and whether a chain of them lets a peer in (pure)
revocation   the signed list of those who are members no longer (pure)
invite       the text that makes somebody a member (pure)
ledger       the book of a swarm's maker: invites, members, and what each request does to it (pure)
rate         how often a stranger may try (pure)
seal         what members say to each other before they know each other, closed to all who lack the swarm's secret (pure)
store        a swarm on this machine's disk
chosen       in which swarm a command works
gate         what one process knows of its swarm: lets peers in, and keeps account of them
exchange     the one message each way right after the Noise handshake
desk         an issuer's: redeems invites and renews certificates
join         becoming a member
attend       what members tell each other while they are connected: revocations, new certificates
member_node  a node inside a swarm: all of it put together

A swarm is its root key. The maker's machine holds it; everybody else holds a certificate that it signed, and a secret that all
members share. What is pure imports nothing that acts; only `join` and `member_node` import libp2p. `edgellm.p2p` knows none of
this: it asks a `Doorkeeper`.
"""
