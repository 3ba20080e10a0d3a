"""A cluster's KV cache, shared with other clusters through the node (`proto/blocks.proto`).

In the node (light):

* `settings`: what a cell's processes are told, in their environment.

In each worker's cell:

* `server`: LMCache's server, a process beside the ranks. `adapter` runs in it, as LMCache's second level: `tasks` finishes
  each of LMCache's tasks once and in time, `pieces` names, seals, finds, fetches, opens and stores.
* `profile`: what a rank says of its KV cache, so that pieces are named and checked by what really runs.

In vLLM's own processes:

* `sharing`: whether all servers answer, and the configuration that vLLM then gets. `connector`: LMCache's, for a server in
  each pipeline stage.
"""
