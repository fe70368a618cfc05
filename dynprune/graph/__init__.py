"""Find the neuron groups of any model."""
