"""The verbs, one at a time per engine: intent, effect, outcome."""

from enginegate.lifecycle.operations import Operations, OvertakenError
from enginegate.lifecycle.products import Products
from enginegate.lifecycle.verbs import Lifecycle

__all__ = ["Lifecycle", "Operations", "OvertakenError", "Products"]
