"""Networks of all families, and those that losses and metrics look through."""
