"""Measurements behind the figures in the documentation; both sides of a comparison always run in one go.

* `main`: the figures of `docs/benchmarks.md`, part by part; it alone knows their bars
* `report`: figures as a table and as JSON, with the machine and the commit they belong to
* `session`: tokens per second of a session and of a cluster started by hand
* `large_model`: a model of a size that is worth spreading, made on the spot
* `first_token`: from the command to the first token, by `edgellm ask` and by hand
* `cold_ask`: from the command to an open session's engine
* `idle`: what a host costs while nobody asks
* `overlay`, `overlay_member`, `overlay_traffic`: cells joined by an overlay, and plain TCP
* `simulate`: a swarm of 500 under churn in virtual time; `simulated_swarm` runs it, `churn` draws who comes, leaves and asks
* `chaos`: faults of hosts amid answers, which must come out as they do undisturbed; `chaos_schedule`: which, from a seed;
  `chaos_faults`: how they are done and undone; `chaos_cluster`: to whom; `chaos_answers`: what came; `chaos_log`: what is kept
* `by_hand`, `by_hand_engine`: Ray and vLLM on machines of a test network as their documentation says, without EdgeLLM

The machines are those of the system tests (`tests.system.lan`): network namespaces on a bridge. Needs root, all but `simulate`.
"""
