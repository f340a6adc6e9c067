"""HTTP surfaces, the relay, metrics and the command line: the composition root."""
