"""What generated code needs while it runs: data, optimizers, the training loop, serving, weights of others.

Import what you need from its own package (`dskc.runtime.train`, `dskc.runtime.optim`, ...): this one stays light.
"""
