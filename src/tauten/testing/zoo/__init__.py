"""Common architectures at small size, to hold the graph of coupled channels, passes and lowerings against."""
