"""Networks: the VQ-GAN that compresses scans and the denoiser that learns its latents."""
