"""`python -m loraens`: the command line."""

from loraens.cli import main

main()
