"""Measures of an engine, on arrays: latency, throughput, memory, size, quality."""
