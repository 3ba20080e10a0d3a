"""A requester: asks the swarm.

discover     who offers the model now -> candidates (network), or a clear reason why nobody does
model_files  manifest, config and tokenizer from a host, checked against the digest
choose       question + model + candidates -> what to ask of the planner (pure)
kv           the secret of its scope, and who keeps which KV pieces of it
prefill      how fast clusters really computed prompts
lease        plan, reserve, and plan again without those who refuse
cluster      a cluster for a model, and one question to it; what sessions use as well
ask          the life of a question: discover, plan, lease, bring up, generate, tear down
disaggregate one question to two clusters: the first computes its prompt, the second answers
timeline     what happened when
spot_check   answers recomputed on other hosts, to find who lies
"""
