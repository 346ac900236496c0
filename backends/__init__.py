"""Home of the adapters, which are imported as ``coolmomentum.<name>``; this file is not shipped."""
