"""Definitions, the two clocks, exact accumulators: what offline and online share. No I/O."""
