"""A tokenized SAE of one's own model and text, from Python or the command line."""
