"""Anatogen turns a folder of 3D medical scans into a generator of new ones."""

from importlib.metadata import version

__version__ = version("anatogen")
