"""The command line, `kyogo`: a verb a file."""

from kyogo.cli.app import main

__all__ = ["main"]
