"""The critical batch size that thermometers read, beside the exact one: ``python -m`` this package.

Three networks are trained on independent batches, drawn with replacement, in each framework and by
three optimizers. In each window of steps the reading of the thermometer is compared with the exact
``tr S / |G|**2`` over all examples, formed at the place of each step that the thermometer measures,
and with the estimate from two batches at each of these places of McCandlish et al.,
arXiv:1812.06162. Keras runs on the backend of ``KERAS_BACKEND``. What was measured goes into a
record; ``--draw`` makes the figure of ``docs/critical_batch_size.md``.
"""
