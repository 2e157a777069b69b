"""One readable loop a stage: autoencoder, then diffusion."""
