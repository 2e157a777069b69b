"""All stages that can be trained, by name; a new family of generators adds its own here."""

from typing import Any

from anatogen.training.autoencoder import AUTOENCODER
from anatogen.training.diffusion import DIFFUSION
from anatogen.training.flow import FLOW
from anatogen.training.stage import Stage
from anatogen.training.wgan_gp import GAN

STAGES: dict[str, Stage[Any]] = {stage.name: stage for stage in (AUTOENCODER, DIFFUSION, FLOW, GAN)}
