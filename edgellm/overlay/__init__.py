"""The overlay: the private network that joins the cells of one cluster, and nothing else.

    engine -- TCP --> nft redirect --> redirector ==fd==> carrier <== sealed TCP, or libp2p stream ==> carrier ...

In the cell (standard library only):
* `redirector`: accepts every TCP connection for the overlay range and hands the socket itself to the carrier.
* `handover`: the messages by which sockets change hands.

The carrier, a process of its own beside each cell, so that moving bytes never holds up the node:
* `carrier`: the program.
* `cell_side`: its end of the handover: sockets from the cell, connections into the cell.
* `links`: authenticated connections to the other members' carriers (TLS 1.3 handshake), with a small pool.
* `records`: what runs over such a link after the handshake; `pump` moves bytes between it and a cell's socket.
* `framing` (pure) and `framed`: the same over a libp2p stream, with flow control of its own.

In the node:
* `address` (pure): who has which address. `identity`: the ephemeral certificate of one member.
* `overlay`: starts and owns a carrier; the only module that the rest of the node calls.
* `streams`: joins a libp2p stream to the carrier.

Import nothing here: the cell's first program would pay for it.
"""
