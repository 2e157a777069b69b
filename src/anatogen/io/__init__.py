"""Files to `Volume` and back; the only place that knows formats."""
