"""Scans on disk become a prepared dataset, and synthetic arrays become scans on disk again."""
