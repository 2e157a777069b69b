"""What autoencoders give back of held-out scans."""
