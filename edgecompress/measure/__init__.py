"""What a network costs, measured: bytes, parameters, MACs, latency."""
