"""Side by side with peers: time and memory of each stage, measured in one run. See README.md."""
