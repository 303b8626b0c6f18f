"""fileSearchStores: collections of a user's documents that answers can rest on.

What is a store or a document is a record (records.py) and the document's bytes a medium, as with files; the index of a store
(retrieval/) is made from them, and made again if it is lost. `stores.py` and `documents.py` are the routes, `imports.py` reads documents
in the background, `search.py` finds passages for the fileSearch tool.
"""
