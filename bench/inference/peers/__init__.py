"""Other servers beside ours: the same perceptron, the same load, the same core, the same run."""
