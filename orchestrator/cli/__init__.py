"""The command line: `orchestrator …`."""
