"""How versions come and go: what gateway wants, what registry holds, what this replica has."""
