"""The command line: stages, and what else there is to do with results, each a function with its signature and docstring."""
