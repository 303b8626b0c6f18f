"""Live sessions: a conversation over a websocket, in which either side may speak at any time. routes.py is where they begin."""
