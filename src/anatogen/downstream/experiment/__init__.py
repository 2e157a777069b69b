"""The experiment: what pre-training on synthetic scans is worth, by arms, fractions of labels, and seeds."""
