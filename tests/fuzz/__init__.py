"""Fuzzing of everything that reads bytes of strangers: `make fuzz`, or `python -m tests.fuzz --help`.

decoders   the registry: what is fuzzed, with which inputs it begins, and which errors are its own
mutation   inputs out of inputs, with an eye for what such bytes are made of
target     one decoder in a process of its own: by atheris, guided by coverage, where that is installed, else blindly
__main__   all of them, two at a time, and the report
"""
