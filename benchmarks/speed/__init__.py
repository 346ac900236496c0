"""How long an optimizer step takes beside each framework's own SGD: ``make speed``."""
