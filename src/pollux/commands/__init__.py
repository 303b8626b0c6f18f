"""The verbs of the `pollux` command, one module each with `main(arguments)`; `cli.py` imports them on demand."""
