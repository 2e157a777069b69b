"""All stages in one call, and the demo."""
