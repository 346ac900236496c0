"""Does the heat bath sample? ``python -m benchmarks.sampling``, beside other samplers."""
