"""The demo: three optimizers on real images, with a thermometer; ``python -m benchmarks.demo``."""
