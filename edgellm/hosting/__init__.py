"""A host: lends devices of this machine to the swarm.

options      what the owner asked for
devices      which devices are lent, and how much of them (pure); measuring them (a child process, cached)
model_files  serves manifest, config and tokenizer to heads
kv           keeps KV pieces for requesters, and serves them to cells here
runner       the effects behind a lease: doorway, overlay and cell
hours        until when it lends (pure)
lending      pauses while the owner needs the machine, resumes, ends at the time that was set
control      how the owner of a running host tells it so
service      the whole of `edgellm host`: calls all of the above in order

Calls go service -> leasing.serve -> runner -> cells, overlay, engine.
"""
