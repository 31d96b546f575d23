"""The queries of the registry; each method is one statement or one transaction's part."""
