"""What is wrong with a folder of scans, and what to do about it."""
