"""Published variants of the VAE, each as a composition of parts, on one small budget.

Every variant is the plain VAE with what its line says in another place, trained for the same
number of epochs on the same 10,000 images of dynamic MNIST, and evaluated on the same test images
with the same noise; the difference of log p(x) to the plain VAE is paired over these images.
The budget is small so that all of them can be run again in minutes: the table shows that and how
they work, not what each is capable of.

    python benchmarks/variants.py [--only NAME ...] [--epochs 10] [--out docs/variants.md]
        [--short README.md]

It needs MNIST in $PYROVAE_DATA.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timing import SEED, lines_of, parse, parser, provenance, publish

import pyrovae
from pyrovae.schedules import cosine

TRAIN, TEST, SAMPLES = 10_000, 500, 500
LATENTS, HIDDEN = 20, 200


@dataclass(frozen=True)
class Variant:
    """A published variant.

    Attributes:
        name: What it is called.
        paper: Who, when, and where to find it.
        code: The arguments of VAE that differ, and after a semicolon those of fit.
        samples: The importance samples for each test image.
    """

    name: str
    paper: str
    code: str
    samples: int = SAMPLES


VARIANTS = [
    Variant("VAE", "Kingma & Welling 2014, arXiv:1312.6114", ""),
    # The KL term.
    Variant("beta-VAE", "Higgins et al. 2017, openreview Sy2fzU9gl", "beta=4.0"),
    Variant("KL annealing", "Bowman et al. 2016, arXiv:1511.06349", "; kl_warmup=5"),
    Variant(
        "capacity",
        "Burgess et al. 2018, arXiv:1804.03599",
        "; bound=ELBO(kl=Capacity(25.0, strength=10.0)), kl_warmup=5",
    ),
    Variant("free bits", "Kingma et al. 2016, arXiv:1606.04934", "; bound=ELBO(kl=FreeBits(0.2))"),
    Variant("beta-TCVAE", "Chen et al. 2018, arXiv:1802.04942", "; bound=TotalCorrelation()"),
    Variant("InfoVAE", "Zhao et al. 2019, arXiv:1706.02262", "; bound=MMD(alpha=0.5)"),
    Variant("WAE-MMD", "Tolstikhin et al. 2018, arXiv:1711.01558", "; bound=MMD()"),
    # The bound and its gradient.
    Variant("IWAE", "Burda et al. 2016, arXiv:1509.00519", "; bound=IWAE(10)"),
    Variant("DReG", "Tucker et al. 2019, arXiv:1810.04152", "; bound=DReG(10)"),
    Variant(
        "sticking the landing",
        "Roeder et al. 2017, arXiv:1703.09194",
        "; bound=StickingTheLanding()",
    ),
    Variant(
        "reweighted wake-sleep",
        "Bornschein & Bengio 2015, arXiv:1406.2751",
        "; bound=ReweightedWakeSleep(10)",
    ),
    # The prior.
    Variant(
        "mixture prior",
        "Dilokthanakul et al. 2016, arXiv:1611.02648",
        "prior=GaussianMixture(D, components=50)",
    ),
    Variant(
        "VampPrior",
        "Tomczak & Welling 2018, arXiv:1705.07120",
        "prior=VampPrior(encoder, x_shape, components=100)",
    ),
    Variant(
        "Exemplar VAE",
        "Norouzi et al. 2020, arXiv:2004.04795",
        "prior=ExemplarPrior(encoder, exemplars)",
    ),
    Variant("RealNVP prior", "Xu et al. 2019, arXiv:1905.13452", "prior=RealNVPPrior(D)"),
    Variant(
        "neural spline prior", "Durkan et al. 2019, arXiv:1906.04032", "prior=SplineFlowPrior(D)"
    ),
    Variant(
        "autoregressive prior",
        "Chen et al. 2017, arXiv:1611.02731",
        "prior=AutoregressiveGaussianPrior(D)",
    ),
    Variant("sparse prior", "Barello et al. 2018, bioRxiv 399246", "prior=LaplacePrior(D)"),
    Variant(
        "heavy-tailed prior",
        "Abiri & Ohlsson 2020, arXiv:2004.02581",
        "prior=StudentTPrior(D)",
    ),
    # The posterior.
    Variant(
        "inverse autoregressive flow",
        "Kingma et al. 2016, arXiv:1606.04934",
        "encoder=IAFEncoder(net(x_shape, IAFEncoder.net_shape(D)))",
    ),
    Variant(
        "neural spline posterior",
        "Durkan et al. 2019, arXiv:1906.04032",
        "encoder=SplineFlowEncoder(net(x_shape, SplineFlowEncoder.net_shape(D)))",
    ),
    Variant(
        "full covariance",
        "Kingma & Welling 2019, arXiv:1906.02691",
        "encoder=FullCovarianceGaussianEncoder("
        "net(x_shape, FullCovarianceGaussianEncoder.net_shape(D)))",
    ),
    Variant(
        "low-rank covariance",
        "Ong et al. 2018, doi 10.1080/10618600.2017.1390472",
        "encoder=LowRankGaussianEncoder(net(x_shape, LowRankGaussianEncoder.net_shape(D)))",
    ),
    Variant(
        "mixture posterior",
        "Morningstar et al. 2021, arXiv:2003.01687",
        "encoder=MixtureEncoder(net(x_shape, MixtureEncoder.net_shape(D)))",
    ),
    Variant(
        "semi-amortised",
        "Kim et al. 2018, arXiv:1802.02550",
        "encoder=RefinedEncoder(encoder, prior, decoder)",
    ),
    # Other latents.
    Variant(
        "hyperspherical VAE",
        "Davidson et al. 2018, arXiv:1804.00891",
        "prior=SphericalUniformPrior(D), encoder=VonMisesFisherEncoder("
        "net(x_shape, VonMisesFisherEncoder.net_shape(D))), "
        "decoder=BernoulliDecoder(Scaled(net((D,), x_shape), factor=D**0.5))",
    ),
    Variant(
        "power spherical",
        "De Cao & Aziz 2020, arXiv:2006.04437",
        "prior=SphericalUniformPrior(D), encoder=PowerSphericalEncoder("
        "net(x_shape, PowerSphericalEncoder.net_shape(D))), "
        "decoder=BernoulliDecoder(Scaled(net((D,), x_shape), factor=D**0.5))",
    ),
    Variant(
        "Concrete bits",
        "Maddison et al. 2017, arXiv:1611.00712",
        "prior=RelaxedBernoulliPrior(10 * D), "
        "encoder=RelaxedBernoulliEncoder(net(x_shape, (10 * D,))), "
        "decoder=BernoulliDecoder(Centred(net((10 * D,), x_shape), levels=2))",
    ),
    Variant(
        "Gumbel-softmax codes",
        "Jang et al. 2017, arXiv:1611.01144",
        "prior=CategoricalPrior(10 * D), "
        "encoder=StraightThroughCategoricalEncoder(net(x_shape, (10 * D,))), "
        "decoder=BernoulliDecoder(Scaled(net((10 * D,), x_shape), factor=10**0.5))",
    ),
    Variant(
        "binary latents by VIMCO",
        "Mnih & Rezende 2016, arXiv:1602.06725",
        "prior=BernoulliPrior(10 * D), encoder=BernoulliEncoder(net(x_shape, (10 * D,))), "
        "decoder=BernoulliDecoder(Centred(net((10 * D,), x_shape), levels=2)); bound=VIMCO(10)",
    ),
    # The networks and the likelihood.
    Variant(
        "gated networks",
        "Tomczak & Welling 2018, arXiv:1705.07120",
        "encoder=GaussianEncoder(GatedMLP(x_shape, (2 * D,), hidden=(200, 200))), "
        "decoder=BernoulliDecoder(GatedMLP((D,), x_shape, hidden=(200, 200)))",
    ),
    Variant(
        "PixelVAE",
        "Gulrajani et al. 2017, arXiv:1611.05013",
        "decoder=PixelCNNDecoder(net((D,), PixelCNNDecoder.net_shape(x_shape, features=8)), "
        "x_shape, features=8, layers=2)",
        samples=50,
    ),
]


def split(code):
    """The arguments of VAE and those of fit."""
    model, _, training = code.partition(";")
    return model.strip(), training.strip()


def names(data):
    """What the lines may speak of."""
    public = {name: getattr(pyrovae, name) for name in pyrovae.__all__}
    net = partial(pyrovae.MLP, hidden=(HIDDEN,))
    x_shape = data.x_shape
    return public | {"D": LATENTS, "x_shape": x_shape, "net": net, "data": data, "torch": torch}


def build(variant, data):
    torch.manual_seed(SEED)
    known = names(data)
    net, model = known["net"], split(variant.code)[0]
    known["encoder"] = pyrovae.GaussianEncoder(net(data.x_shape, (2 * LATENTS,)))
    known["decoder"] = pyrovae.BernoulliDecoder(net((LATENTS,), data.x_shape))
    known["prior"] = pyrovae.StandardNormal(LATENTS)
    known["exemplars"] = data.train.head(1000).x
    given = eval(f"dict({model})", known)
    plain = {name: known[name] for name in ("prior", "decoder", "encoder")}
    return pyrovae.VAE(**{**plain, **given}), eval(f"dict({split(variant.code)[1]})", known)


def first(examples, count):
    """The first images, binarised anew at every visit as all of them are."""
    raw = examples.raw(list(range(min(count, len(examples)))))
    return pyrovae.Examples(raw.x, raw.y, preprocessing=examples.preprocessing)


def measure(variant, given):
    data = pyrovae.load_data("digits" if given.smoke_test else "mnist")
    train = first(data.train, 64 if given.smoke_test else TRAIN)
    epochs = 1 if given.smoke_test else given.epochs
    vae, options = build(variant, data)
    run = pyrovae.fit(
        vae,
        train,
        test=data.test,
        optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True),
        epochs=epochs,
        lr_schedule=cosine(1.0, 0.0, epochs * -(-len(train) // 128)),
        seed=SEED,
        progress=False,
        **options,
    )
    samples, limit = (5, 20) if given.smoke_test else (variant.samples, TEST)
    return run.evaluate(num_samples=samples, limit=limit)


def row(variant, found, base):
    few = "" if variant.samples == SAMPLES else f" ({variant.samples} samples)"
    gain = found.log_evidence - base
    error = gain.std().item() / len(gain) ** 0.5
    return [
        variant.name,
        variant.paper,
        f"`{variant.code}`" if variant.code else "",
        f"{found.log_evidence.mean():.2f}{few}",
        f"{gain.mean():+.2f} +- {error:.2f}" if gain.any() else "",
        f"{found.elbo.mean():.2f}",
        str(found.active_units),
    ]


def main():
    options = parser(__doc__, repeats=1)
    options.add_argument("--only", nargs="+", default=[], help="the names of variants")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--short", type=Path, help="a Markdown file for the first five columns")
    given = parse(options)
    chosen = [v for v in VARIANTS if not given.only or v.name in (*given.only, "VAE")]
    head = ["variant", "paper", "what changes", "log p(x)", "against the first", "ELBO", "active"]
    rows, base = [head, ["---"] * len(head)], None
    for variant in chosen:
        found = measure(variant, given)
        base = found.log_evidence if base is None else base
        rows.append(row(variant, found, base))
        about = (
            f"{given.epochs} epochs of {TRAIN:,} images, {TEST} test images, {SAMPLES} importance "
            "samples each, nats per image; active is the number of active units."
        )
        # Each row is kept as soon as it is there.
        ran = provenance(given, "variants.py")
        publish("variants", [about, "", *lines_of(rows), "", ran], given.out)
        if given.short is not None:
            publish("recipes", [*lines_of([cells[:5] for cells in rows]), "", ran], given.short)


if __name__ == "__main__":
    main()
