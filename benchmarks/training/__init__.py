"""The same networks trained by many optimizers in many frameworks, measured in one way.

``../README.md`` has the protocol, ``__main__.py`` the command that tunes, reports and draws.
"""
