"""Names that users choose from, where a type says them once; without imports of weight."""

from typing import Literal

StageName = Literal["autoencoder", "diffusion", "flow"]
Sampler = Literal["ddpm", "ddim", "dpm_solver_pp", "euler", "heun"]
FileFormat = Literal["nifti", "dicom", "npy"]
