"""Explore: a local page that moves a run's latents and encodes one's own images."""

__all__ = ["Inputs", "Latent", "Placing", "Server", "Session", "look_at", "serve"]

from pyrovae.explore.inputs import Inputs
from pyrovae.explore.latents import Latent, look_at
from pyrovae.explore.placing import Placing
from pyrovae.explore.server import Server
from pyrovae.explore.serving import serve
from pyrovae.explore.session import Session
