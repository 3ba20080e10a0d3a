"""Fakes that ship with the product, for its own tests and for those of backends and plugins.

* `memory_network`: peers, streams, provider records and faults without sockets
"""
