"""Sessions: clusters that are kept open, each by a daemon of its own, reached over a Unix socket of its owner.

registry  which sessions there are: one directory each, with socket, pid and log (files)
idle      when a session has been idle for too long (pure)
daemon_order  what a daemon is told (data)
daemon    `python -m edgellm.sessions.daemon`: holds the cluster and serves `proto/session.proto`
reuse     which open session may answer a question that named none (pure)
conversation  what was said in a chat, and commands in it (pure)
client    the CLI's side: start a daemon, follow its bring-up, ask it, close it
"""
