"""Planning: from what scans are like to the settings that `prepare` and `train` take."""
