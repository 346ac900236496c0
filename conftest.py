"""Collect the Python blocks of the README as tests, which run in order in one namespace."""

import os

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["README.md"]).pytest()

# A process has one Keras backend: tests/test_keras_backends.py runs these with each.
if "KERAS_BACKEND" not in os.environ:
    collect_ignore = ["coolmomentum/keras", "coolmomentum/tensorflow"]
