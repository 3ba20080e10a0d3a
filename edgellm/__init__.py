"""EdgeLLM runs language models on machines that others lend."""

__version__ = "0.1.0"
