"""The Python client: language models of a swarm, from a program. Its public names are those of `edgellm` itself.

sampling      `SamplingParams`: how an answer is to be sampled, checked
prompts       from what a caller may give as a prompt to a question (pure)
results       `Completion`, `Hop`, and how pieces make an answer (pure)
options       what can be said of a session that is to be opened, and the order that its daemon gets (pure)
connection    `Stream`: one request to an open session's engine over gRPC, in any number of threads
session       a session opened for this process, or one that is open already
llm           `LLM`
waiting       blocking work under asyncio or trio
async_llm     `AsyncLLM`, `AsyncStream`
swarm         `Swarm`, `AsyncSwarm`: who lends what
causal_lm     `AutoDistributedModelForCausalLM`, in the shape of transformers; the only module that imports torch

Calls go down this list; the cluster itself lives in a daemon (`edgellm.sessions`), so neither vLLM nor Ray nor libp2p is
imported here, except libp2p by `swarm`.
"""
