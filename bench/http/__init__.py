"""Servers to compare with, each as small as it can be, and the clients that load them."""
