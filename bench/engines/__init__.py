"""Engines other than the bundled one, to be measured with."""
