"""What runs a graph. Each backend gives a signature and runs arrays."""
