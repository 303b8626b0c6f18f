"""Finding passages in documents: text of files, cut into chunks, in an index of words and vectors on disk. Knows nothing of HTTP.

document -> reading.py (text) -> chunks.py (passages with offsets) -> embedder.py (vectors) -> index.py -> found passages
"""
