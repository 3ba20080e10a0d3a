"""The nouns: frozen dataclasses that everything else passes around. They import nothing that acts.

model    what a model is: its files, its layers in bytes, its digest
advert   what a host lends
plan     what a requester asks of a cluster, and which peers, layers and devices shall run it
request  one question to an engine, and the pieces of its answer

Sizes are in bytes (`_bytes`), times in seconds (`_s`), instants are Unix seconds as floats (`_at`), rates say their unit.
"""
