"""What synthetic scans are worth: pre-training on them, then segmentation from few labels."""
