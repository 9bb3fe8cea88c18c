"""The pictures of the tutorial, drawn from what its own code has computed.

python docs/figures.py
"""

import contextlib
import io
import re
from pathlib import Path

import torch
from matplotlib.patches import Ellipse

from pyrovae.plots import style
from pyrovae.plots.saving import save_png

HERE = Path(__file__).parent
SHOWN = (2, 14, 3)  # of the test images


def tutorial():
    """The names that the tutorial's code defines, up to the end of the section on training."""
    text = (HERE / "tutorial.md").read_text().split("\n## 9.")[0]
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for code in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
            exec(code, names)
    return names


@torch.no_grad()
def posteriors(log_joint, grid, kl_to_posterior_on_grid, vae, x):
    """Images, and the true posterior of each under the ellipses of q(z | x)."""
    figure, panels = style.panels(2, len(x), size=(6.6, 4.6))
    points, _ = grid()
    log_posterior = log_joint(vae, x, points).softmax(0)
    for index, (image, density) in enumerate(zip(x, log_posterior.T, strict=True)):
        above, below = panels[index], panels[index + len(x)]
        _image(above, image[0])
        q = vae.encoder(image)
        _density(below, density.reshape(301, 301).T)
        for deviations in (1, 2):
            size = (2 * deviations * q.stddev).tolist()
            below.add_patch(Ellipse(q.mean.tolist(), *size, fill=False, ec=style.AMBER, lw=1.3))
        centre = (density[:, None] * points[:, 0]).sum(0).tolist()
        below.set_xlim(centre[0] - 1.5, centre[0] + 1.5)
        below.set_ylim(centre[1] - 1.5, centre[1] + 1.5)
        kl = kl_to_posterior_on_grid(vae, image[None]).item()
        style.title(above, "x" if index == 0 else "", "")
        style.title(below, "" if index else "p(z | x) and q", f"KL {kl:.1f}")
    return figure


@torch.no_grad()
def latent_space(vae, test):
    """The means of q(z | x) by digit, and the images that the decoder makes of a grid of z."""
    figure, (left, right) = style.panels(1, 2, size=(7.6, 3.9))
    means = vae.encoder(test.x).mean
    for digit, colour in enumerate(style.PALETTE):
        x, y = means[test.y == digit].T
        left.scatter(x.numpy(), y.numpy(), s=14, color=colour, label=str(digit), linewidths=0)
    left.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    left.legend(fontsize=7, ncols=5, frameon=False, loc="upper center", handletextpad=0)
    style.title(left, "Test images at the means of q(z | x)", "")

    line = torch.linspace(-3, 3, 13)
    z = torch.stack(torch.meshgrid(line, line.flip(0), indexing="xy"), -1)  # (row, column, 2)
    images = torch.nn.functional.pad(vae.decoder(z).mean[:, :, 0], (1, 1, 1, 1))
    _image(right, images.transpose(1, 2).reshape(13 * 10, 13 * 10))
    style.title(right, "The decoder's means over the same z", "")
    return figure


def _image(axes, pixels):
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    _bare(axes)


def _density(axes, values):
    extent = (-4.5, 4.5, -4.5, 4.5)
    axes.imshow(
        values.numpy(), cmap="Blues", origin="lower", extent=extent, interpolation="bilinear"
    )
    _bare(axes)


def _bare(axes):
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)


if __name__ == "__main__":
    t = tutorial()
    images = t["test"].x[list(SHOWN)]
    tools = t["log_joint"], t["grid"], t["kl_to_posterior_on_grid"]
    save_png(HERE / "tutorial-posteriors.png", posteriors(*tools, t["vae"], images))
    save_png(HERE / "tutorial-latents.png", latent_space(t["vae"], t["test"]))
