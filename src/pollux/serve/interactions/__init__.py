"""Interactions: turns of a conversation that the server remembers. routes.py is where requests arrive."""
