"""The commands: each module is one topic, and imports what is heavy only when it runs."""
