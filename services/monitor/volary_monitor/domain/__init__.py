"""What the monitor decides: bins, distances, discoveries, windows, alerts; no engine is needed."""
