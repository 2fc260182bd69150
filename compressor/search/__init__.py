"""Sizes that the grid does not have: any heads and neurons of any layers, found in the trained super-network."""
