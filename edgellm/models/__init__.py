"""Models on disk: where they are, what they consist of, and proof that two hosts hold the same.

* `resolve`: from what a user calls a model to its directory, downloaded if need be
* `linked`: a directory without symbolic links, as a cell needs it
* `files`: which files of a directory are the model
* `manifest`: the files of a model with their hashes; its canonical encoding and digest
* `shape`: sizes and heads, from config.json and the safetensors headers
* `light`: configuration and tokenizer that a head fetched from a host, verified before they can be seen
* `tokens`: how many tokens a text has
* `disk`: a full disk as one clear line

These read and write files and block; call them from a worker thread. Nothing here imports torch or transformers;
`huggingface_hub` and `tokenizers` only when used. Imports `edgellm.types`, `edgellm.errors` and `edgellm.paths`, nothing
else of the product.
"""
