"""Families of generators behind one protocol: described, saved, sampled, shipped."""
