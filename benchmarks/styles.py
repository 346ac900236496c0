"""The styles of Matplotlib for light pages and for dark ones."""

STYLES = {"light": "default", "dark": "dark_background"}
