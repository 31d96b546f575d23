"""Where records are read from; every connector yields one frame of text columns."""
