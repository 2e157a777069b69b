"""Evaluation: are synthetic scans like real ones, diverse, and no copies of patients?"""
