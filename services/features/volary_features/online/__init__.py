"""The online state in Redis: folding events in, reading vectors out, loading and repairing."""
