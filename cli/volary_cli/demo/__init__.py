"""The demo: a declared example, a client, and a story that must come true."""
