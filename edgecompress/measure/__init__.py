"""The cost of a network, measured: bytes, parameters, MACs, latency."""
