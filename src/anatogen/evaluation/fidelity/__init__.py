"""Do synthetic scans look real?"""
