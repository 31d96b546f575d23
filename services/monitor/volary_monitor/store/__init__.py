"""The queries of the monitor; each function is one statement or one transaction's part."""
