"""Settings: what can be set, named starting points, and how sources are merged."""
