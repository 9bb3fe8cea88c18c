"""Pictures: grids of examples, and charts of what was trained and measured."""

__all__ = [
    "Picture",
    "curves",
    "grid",
    "kl_bars",
    "latent_scatter",
    "png",
    "save_arrays",
    "weights",
]

from pyrovae.plots.charts import curves, kl_bars, latent_scatter, weights
from pyrovae.plots.grids import Picture, grid
from pyrovae.plots.saving import save_arrays
from pyrovae.plots.style import png
