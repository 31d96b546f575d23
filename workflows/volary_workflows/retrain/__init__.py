"""Learn again from what has happened since, and carry the result into production."""
