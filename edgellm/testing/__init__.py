"""Fakes that ship with the product, for its own tests and for those of backends and plugins.

* `memory_network`: peers, streams, provider records and faults without sockets
* `scripted_engine`: the real gRPC protocol around an engine that says what its script says
* `simulated`: engines and machines in virtual time, whose greedy answers show each lost or doubled token
* `scripted_machine`: members of clusters without processes, heads with a scripted engine
"""
