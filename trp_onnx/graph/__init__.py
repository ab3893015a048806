"""The network as a graph: opened, bounded, its layers, shapes and cost, and sessions that run it."""
