"""The command line: each command is a function with its signature and docstring."""
