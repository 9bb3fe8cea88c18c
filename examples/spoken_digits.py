"""Free Spoken Digits as log-mel spectrograms of any length: a recurrent VAE and a dense one.

python examples/spoken_digits.py [--data-dir PATH] [--epochs 60] [--out PNG] [--smoke-test]

Frames after the end are missing: log p(x) is of those there are, in standardised log-mels.
"""

import argparse
from pathlib import Path

import torch
from pyro.distributions import Normal
from scipy.io import wavfile
from sklearn.linear_model import LogisticRegression

import pyrovae
from pyrovae.data.raw import data_folder
from pyrovae.decoders import GaussianDecoder, NanMaskedDecoder
from pyrovae.distributions import NanMasked
from pyrovae.networks import RecurrentDecoderNet, RecurrentEncoderNet
from pyrovae.plots import grid, png

T, BANDS, HOP, WINDOW, D, H = 40, 32, 160, 256, 16, 128
MELS = torch.log10(1 + torch.linspace(0, 4000, WINDOW // 2 + 1) / 700)
CENTRES = torch.linspace(MELS[2], MELS[-1], BANDS + 2)
MEL_FILTERS = (1 - (MELS - CENTRES[1:-1, None]).abs() / (CENTRES[1] - CENTRES[0])).clamp(min=0)


def log_mels(path):
    sound = torch.tensor(wavfile.read(path)[1]) / 2**15
    spectrum = sound.stft(WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    return (MEL_FILTERS @ spectrum.abs().square() + 1e-5).log().T[:T]


class Frames(torch.nn.Module):  # beside the values of a frame whether there is one
    def __init__(self, net):
        super().__init__()
        self.net, self.out_shape = net, net.out_shape

    def forward(self, x):
        return self.net(torch.cat([x.nan_to_num(), (~x[..., :1].isnan()).to(x.dtype)], -1))


def make(kind):
    torch.manual_seed(0)
    if kind == "dense":
        net = Frames(pyrovae.MLP((T, BANDS + 1), (2 * D,), hidden=(256, 256)))
        decoding = pyrovae.MLP((D,), (T, BANDS), hidden=(256, 256))
    else:
        net = RecurrentEncoderNet((T, BANDS), (2 * D,), hidden=H, bidirectional=True, missing=True)
        decoding = RecurrentDecoderNet((D,), (T, BANDS), hidden=H)
    decoder = NanMaskedDecoder(GaussianDecoder(decoding, learn_scale=True))
    return pyrovae.VAE(pyrovae.StandardNormal(D), decoder, pyrovae.GaussianEncoder(net))


def main(folder, epochs, out=None, few=None):
    paths = sorted(folder.glob("*.wav"))[::few]
    digit, take = torch.tensor([[int(p.stem[0]), int(p.stem.split("_")[2])] for p in paths]).T
    x = pyrovae.pad_sequences([log_mels(path) for path in paths], length=T)
    seen = x[take >= 5].flatten(0, 1)
    x = (x - seen.nanmean(0)) / (seen - seen.nanmean(0)).square().nanmean(0).sqrt()
    parts = [take >= 10, (take >= 5) & (take < 10), take < 5]
    train, valid, test = (pyrovae.Examples(x[i], digit[i], missing=True) for i in parts)
    held, frames = test.head(len(test)), (~x[parts[2]][..., 0].isnan()).sum() / len(test)
    alone = NanMasked(Normal(0.0, 1.0)).log_prob(held.x).sum() / len(test)
    print(f"log p(x) in nats per recording of {frames:.1f} frames; bands alone {alone:.1f}")
    for kind in ("dense", "recurrent"):
        vae, given = make(kind), {"batch_size": 64, "patience": 10, "engine": "eager"}
        pyrovae.fit(vae, train, valid=valid, epochs=epochs, progress=False, **given)
        log_p = pyrovae.evaluate(vae, test, num_samples=200).log_evidence.mean()
        codes = [vae.encoder(s.head(len(s)).x).mean.detach() for s in (train, test)]
        right = LogisticRegression(max_iter=5000).fit(codes[0], train.y).score(codes[1], test.y)
        print(f"{kind:12}{log_p:9.1f}   digit from z: {right:.1%} right")
    if out:
        means, samples = pyrovae.reconstruct(vae, held).x, pyrovae.sample(vae, held, 10).x
        images = torch.stack([held.x[::30], means[::30], samples]).mT.flip(-2).unsqueeze(2)
        out.write_bytes(png(grid(images, rows=["recorded", "mean", "sample"])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder of free_spoken_digits, or $PYROVAE_DATA")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, help="a PNG of spectrograms to write")
    parser.add_argument("--smoke-test", action="store_true", help="one epoch on a few recordings")
    given = parser.parse_args()
    folder = data_folder(given.data_dir) / "free_spoken_digits" / "recordings"
    run = (1, None, 17) if given.smoke_test else (given.epochs, given.out)
    main(folder, *run) if folder.is_dir() else print(f"There is no {folder}: see --data-dir.")
