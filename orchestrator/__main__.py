"""`python -m orchestrator` is the command line."""

from orchestrator.cli.main import main

main()
