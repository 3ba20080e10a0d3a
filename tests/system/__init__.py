"""Tests of whole machines: the product's own commands, on hosts with addresses, processes and homes of their own.

* `lan`: a `Lan` of `Machine`s on a bridge; links are cut and healed, cables pulled, machines switched off
* `machine`: one `Machine`, made of namespaces: its home, its environment, what runs and what lies about on it
* `namespaces`: the namespaces that a machine is made of, and the first process that holds them
* `process`: a command that runs on a machine: its output as it comes, Ctrl-C, kill, freeze
* `leftovers`: what a test left on its machines, by comparing before and after
* `solo`: the reference answers, by vLLM alone in one process

`process` and `namespaces` know nothing of machines, `machine` nothing of the LAN. The fixtures are in `conftest`.
Needs root, and of the system `ip`, `nft`, `unshare` and `nsenter`; nothing is made in the namespaces of the one who
runs the tests.
"""
