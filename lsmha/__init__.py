"""Networks, training and analysis of compact convolutional transformers, in plain PyTorch.

What is offered here is loaded when it is first used: `import lsmha` waits for nothing. `__init__.pyi` lists it.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
