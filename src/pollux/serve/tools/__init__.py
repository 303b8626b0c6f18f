"""Tools that the server runs itself, while an answer is being written: what one is (tool.py), those of a request (toolbox.py), and the
rounds in which the model calls them and goes on (rounds.py)."""
