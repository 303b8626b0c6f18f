"""Requests that nobody sends on purpose, for every route of a server, and what must hold of its answers and of itself afterwards."""
