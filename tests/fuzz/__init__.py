"""Fuzzing of everything that reads bytes of strangers: `make fuzz`, or `python -m tests.fuzz --help`.

decoder    what a decoder is, and whether it takes an input as it should
decoders   all of them; each subject (`leases`, `overlays`, ...) has a module of its own here
peer       a peer that sends whatever is tried, and a network that leads to it
mutation   inputs out of inputs, with an eye for what such bytes are made of
target     each decoder in a process of its own: by atheris, guided by coverage, where that is installed, else blindly
__main__   all of them, two at a time, and the report
"""
