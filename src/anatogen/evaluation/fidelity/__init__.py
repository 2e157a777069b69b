"""Do synthetic scans look real, and are they diverse?"""
