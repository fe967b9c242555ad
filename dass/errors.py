"""The two ways a caller hears that a request cannot be done.

ValueError
├── InputError        the request is wrong: which value, what was expected, what to do next
└── NumericalError    the data is wrong: NaN or infinite activations, and the layer they came from
"""


class InputError(ValueError):
    """A value the caller gave cannot be used. The message is one line and says what to do next."""


class NumericalError(ValueError):
    """Activations became NaN or infinite. The message names the layer."""
