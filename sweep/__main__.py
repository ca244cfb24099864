"""`python -m sweep` is `conformer-sweep`, of the Python that is meant."""

from sweep.cli.app import main

main()
