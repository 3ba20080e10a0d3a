"""`python -m edgellm`."""

from edgellm.cli import main

main()
