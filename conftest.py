"""Collect the Python blocks of README and docs as tests: those of a file run in order, as one."""

import os

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"]
).pytest()

# A process has one Keras backend: tests/test_keras_backends.py runs these with each.
if "KERAS_BACKEND" not in os.environ:
    collect_ignore = ["coolmomentum/keras", "coolmomentum/tensorflow", "docs/keras.md"]
    collect_ignore_glob = ["benchmarks/training/_keras*.py"]
