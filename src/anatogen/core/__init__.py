"""What everything stands on: errors, files, seeds, devices, weights, versions."""
