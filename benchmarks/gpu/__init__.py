"""What a borrowed GPU has to answer, in one command: ``python -m benchmarks.gpu``."""
