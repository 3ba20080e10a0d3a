"""A session's endpoint on loopback: HTTP from the user's tools to the API that the engine serves in the head's cell.

guard   who may ask what: host, origin, key, path, size (pure), and refusals in the shape that clients know
server  connections, limits, and the way of one request to the engine and back

What a chat, a tool or a schema is, the engine knows; here requests and answers are passed on as they are.
"""
