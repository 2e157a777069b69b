"""Recipes: one file for each known source of scans."""
