"""What a record must be; decided without a server, a database or an event loop."""
