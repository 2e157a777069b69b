"""Do synthetic scans leak patients?"""
