"""What the project measures of itself, always beside a reference in the same run."""
