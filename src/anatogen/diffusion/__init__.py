"""The diffusion process, free of any network: schedules, parameterizations, samplers."""
