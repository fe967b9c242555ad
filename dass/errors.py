"""The ways a caller hears that a request cannot be done.

ValueError
├── InputError                the request is wrong: which value, what was expected, what to do next
│   └── UnavailableError      something it needs is not to be had here and now; of the thing itself nothing was learned
└── NumericalError            the data is wrong: NaN or infinite activations, and the layer they came from
RuntimeError
└── InfrastructureError       what the work needs does not answer or gave out: a server, a database, a disk
"""


def briefly(value: object) -> str:
    """A value as a message shows it, on one line: of what kind it is, where it would be long."""
    shown = repr(value)
    return shown if len(shown) <= 60 and "\n" not in shown else f"a {type(value).__name__}"


class InputError(ValueError):
    """A value the caller gave cannot be used. The message is one line and says what to do next."""


class UnavailableError(InputError):
    """What the request needs is missing, or cannot be reached. The message says where it was looked for."""


class NumericalError(ValueError):
    """Activations became NaN or infinite. The message names the layer."""


class InfrastructureError(RuntimeError):
    """Nothing is wrong with the request, and it may succeed later. The message is one line and names what failed."""
