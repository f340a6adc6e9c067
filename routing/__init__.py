"""Which upstream serves a request, whether it may take one more, and what to try next."""
