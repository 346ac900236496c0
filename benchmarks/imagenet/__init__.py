"""EfficientNet-B0 on ImageNet, the second experiment of the paper (its Fig. 2 and Table 3).

``recipe`` has its numbers, ``optimizers``, ``averages``, ``network`` and ``images`` its parts, to
be imported by themselves; ``__main__`` is the command that trains, scans and draws.
"""
