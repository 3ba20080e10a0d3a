"""A session's endpoint on loopback: HTTP from the user's tools to the API that the engine serves in the head's cell.

guard   who may ask what: host, origin, key, path, size (pure), and refusals in the shape that clients know
server  connections, limits, and who is served
client  the connection of one who asks
engine  the connection to the engine's API
relay   the way of one request from the one to the other, and of its answer back
pump    the streamed answers' bytes, in a thread of their own; chunks: where these end

What a chat, a tool or a schema is, the engine knows; here requests and answers are passed on as they are.
"""
