"""KV pieces through the node's block service, with real engines: one cluster computes, another one answers.

The clusters of `conftest` are for all tests here. Each has namespaces of its own without a way to the others: only by what the
node's service keeps can one profit from another. A module's last test kills something that its cluster then lacks.

The reference of an answer from pieces is vLLM's own prefix cache at the same boundary: in bfloat16 a prompt computed in one go
may differ from it in the last bits.
"""
