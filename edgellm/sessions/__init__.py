"""Sessions: clusters that are kept open, each by a daemon of its own, reached over a Unix socket of its owner.

story     what a session's journal tells (pure)
journal   keeps it, so that a session outlives its daemon
recover   brings back a session whose daemon died
registry  which sessions there are: one directory each, with socket, pid and log (files)
idle      when a session has been idle for too long (pure)
cost      what a session costs those who lend to it (pure)
daemon_order  what a daemon is told (data)
serving   which cluster answers now, and how many requests each has
holding   brings clusters up and puts one in another's place
service   `proto/session.proto`
own_console  the console at the session's own endpoint
daemon    `python -m edgellm.sessions.daemon`: one process that does all of this, and the endpoint (`edgellm.gateway`)
reuse     which open session may answer a question that named none (pure)
conversation  what was said in a chat, and commands in it (pure)
client    the CLI's side: start a daemon, follow its bring-up, ask it, close it
"""
