"""The console: what the swarm, the sessions and the hosts of this machine are at, as an API and as pages in a browser.

views     everything that is shown, and what is asked, as pydantic models (data)
sources   what the console shows and starts, as protocols: passed in, so that `edgellm console`, a session's daemon and tests
          each bring their own
swarm     looks at the swarm again and again while somebody watches, and tells who came and went
sessions  this user's sessions, through their daemons
hosts     hosts that were started from here: child processes that end with the console
chat      questions to a session's engine and its timings, passed through
guard     who may ask (pure)
gatekeeper  the guard around the app, security headers, the login
api       the routes below /api/v1
events    server-sent events
pages     the pages below /, their templates and static files
forms     what forms of the pages say, as what the API is asked (pure)
timeline  where the time of one answer went, as it is drawn (pure)
pipeline  a session's stages, as they are drawn (pure)
rendering  templates made into pages
app       `create_app`: all of it as one ASGI app
serving   the app on a port or on a Unix socket

Calls go from app to api and pages, from there to sources. Only `serving` knows the server. `views`, `guard` and `sources`
import nothing that acts.
"""
