"""The native data plane: the Python engine behind it controls it and answers what it does not."""
