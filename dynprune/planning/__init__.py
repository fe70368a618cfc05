"""Decide what is pruned: which neurons, which experts, and what stands in for the rest."""
