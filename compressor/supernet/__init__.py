"""The super-network: architecture tables, sub-networks as parameter views, importance, rewiring, extraction."""
