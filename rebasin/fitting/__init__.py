"""Layers fitted by least squares: Gram matrices of what n models read, and what they tell of units and weights."""
