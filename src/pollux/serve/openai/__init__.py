"""OpenAI's routes over the same engine: chat completions, embeddings and models for programs that were written for that API."""
