"""The console: what the swarm, the sessions and the hosts of this machine are at, as an API and as pages in a browser.

views     everything that is shown, and what is asked, as pydantic models (data)
sources   what the console shows and starts, as protocols: passed in, so that `edgellm console`, a session's daemon and tests
          each bring their own
swarm     hosts as they are shown, and what is another than before (pure)
watcher   looks at the swarm again and again while somebody watches, and tells who came and went
membership  the swarm that the console is in: a known one, or one of its own
sessions  this user's sessions, through their daemons
chat      questions to a session's engine and its timings, passed through
local_hosts  hosts that were started from here: child processes that end with the console (`tethered`: however it ends)
machine   KV caches and fitness of this machine
standalone  all of these for `edgellm console`
attached  all of these for a session's daemon
guard     who may ask (pure)
gatekeeper  the guard around the app, bodies within bounds, headers that browsers keep to
problems  errors as answers
api       the routes below /api/v1
events    answers that go on: server-sent events, chats
pages     the pages below /, their templates and static files
forms     what forms of the pages say, as what the API is asked (pure)
timeline  where the time of one answer went, as it is drawn (pure)
pipeline  a session's stages, as they are drawn (pure)
rendering  templates made into pages
app       `create_app`: all of it as one ASGI app
serving   the app on a port or on a Unix socket

Calls go from app to api and pages, from there to sources. What `standalone` and `attached` put together knows nothing of HTTP,
and only `serving` knows the server. `views`, `guard` and `sources` import nothing that acts.
"""
