"""What can be typed: a dataclass for each verb."""

__all__ = [
    "VERBS",
    "Doctor",
    "Encode",
    "Evaluate",
    "Explore",
    "Export",
    "Interpolate",
    "New",
    "Reconstruct",
    "Report",
    "Resume",
    "Sample",
    "Train",
    "Training",
    "Traverse",
]

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


def _auto(metavar: str, default: str) -> Any:
    """An option whose default is not a value but a rule."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def _output(metavar: str, default: str) -> Any:
    """The file that a verb writes."""
    return tyro.conf.arg(
        aliases=["-o"], metavar=metavar, help_behavior_hint=f"(default: {default})"
    )


Names = Annotated[str, tyro.conf.arg(metavar="NAME|PATH")]
Part = Annotated[str, tyro.conf.arg(metavar="NAME|FILE:CLASS")]
DataDir = Annotated[Path | None, _auto("PATH", "$PYROVAE_DATA, or the user's cache folder")]
OtherData = Annotated[str | None, _auto("NAME|PATH", "the run's own")]
OldDataDir = Annotated[Path | None, _auto("PATH", "where they lay in training")]
Device = Annotated[str | None, _auto("NAME", "cuda where there is one, else cpu")]
RunPath = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN|latest")]]
Binarization = Literal["none", "threshold", "static", "dynamic"]


@dataclass(kw_only=True)
class Training:
    """The options of training, whatever the program."""

    data: Names = "digits"
    """digits, mnist, fashion-mnist, kmnist, binarized-mnist, frey-faces, a folder of images, or a
    file: arrays or counts as .npy, .npz, .mtx, .h5ad, a table as .csv, .tsv; --data itself may be
    left out"""
    data_dir: DataDir = None
    """where named data sets lie"""
    columns: Annotated[Path | None, _auto("FILE.json", "inferred")] = None
    """what columns of a table hold: {"size": "numeric", "age": "whole", "sex": "binary", "job":
    "categorical", "code": "ignore"}, or a list of the categories"""
    sequences: bool = False
    """take an array (N, T, X) as sequences, T steps of X numbers, rather than as grey images"""
    missing: bool = False
    """take NaN in arrays for a missing entry, which is left out of the likelihood; an empty entry
    of a table is one in any case"""
    size: Annotated[str | None, _auto("INT|HxW", "the images' own, if it is one")] = None
    """the size of all images of a folder, such as 64, or height x width as 48x64: the shorter
    side is scaled, and the centre cut out"""
    pad: bool = False
    """scale the longer side of a folder's images instead, and fill up with black"""
    grey: bool = False
    """make a folder's images grey"""
    skip_bad: bool = False
    """leave out the files of a folder that cannot be read"""
    binarize: Annotated[
        Binarization | None,
        _auto(
            "none|threshold|static|dynamic",
            "dynamic for digits and the MNIST family, unless a decoder of grey values is given",
        ),
    ] = None
    """how grey values become binary"""
    kl_warmup: Annotated[float | None, _auto("FLOAT", "a tenth of the epochs")] = None
    """the epochs over which the weight of the KL term, or of --kl capacity the nats, rises from 0;
    without it latents may never come to be used"""
    bound: Annotated[str | None, _auto("NAME|FILE:CLASS", "elbo, as Pyro's Trace_ELBO")] = None
    """what is maximised"""
    kl: Annotated[str | None, _auto("NAME|FILE:CLASS", "nothing")] = None
    """what is made of the KL of the latents: free-bits, capacity, balanced-kl"""
    epochs: Annotated[
        int | None, _auto("INT", "20, or as many as make 3000 steps, at most 300")
    ] = None
    """how often to visit every training example"""
    batch_size: int = 128
    """the examples of one step"""
    lr: float = 2e-3
    """Adam's learning rate at the start"""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """what becomes of the learning rate: cosine takes it to zero over the epochs"""
    clip_norm: Annotated[float | None, _auto("FLOAT", "no clipping")] = None
    """the norm that gradients are scaled down to where they exceed it"""
    patience: Annotated[int | None, _auto("INT", "train all epochs")] = None
    """stop after so many epochs without a better validation ELBO, and keep the best weights"""
    seed: int = 0
    """the seed of weights, order and noise"""
    engine: Annotated[
        Literal["eager", "graph", "inductor", "cuda-graph", "auto"] | None,
        _auto("eager|graph|inductor|cuda-graph|auto", "what so many steps are worth"),
    ] = None
    """how steps are run: in Python, as a graph, compiled, replayed by a GPU, or as is fastest"""
    steps_per_replay: int = 1
    """by the engine cuda-graph, how many steps a GPU takes by one launch, at most 64"""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """the precision of the networks' matrix products while training; tf32 is for GPUs"""
    device: Device = None
    """cpu or cuda"""
    init_from: Annotated[Path | None, _auto("RUN|latest", "random weights")] = None
    """a run whose weights to start from, where their names and shapes match"""
    run_dir: Annotated[Path | None, _auto("PATH", "runs/DATA-DATE-TIME")] = None
    """a new folder for the run"""
    tensorboard: bool = False
    """write what TensorBoard shows into the run's folder tensorboard"""
    dry_run: bool = False
    """say what would be done and how long it would take, and the same in Python; train nothing"""
    quiet: bool = False
    """print the path of the run, and nothing else"""
    json: bool = False
    """print one JSON object with the run and what was measured, and nothing else"""


@dataclass(kw_only=True)
class Train(Training):
    """Train a VAE, measure it, and write a report.

    The options of a part that is named are --prior.NAME, --encoder.NAME, and so on; all of them
    are listed at the end.

    `pyrovae train my_model.py:build` trains a program of your own: build is called with the
    shape of one observation, and its keyword arguments become options, --build.NAME.
    """

    prior: Part = "standard-normal"
    """p(z)"""
    encoder: Part = "gaussian"
    """q(z|x)"""
    decoder: Annotated[
        str | None,
        _auto(
            "NAME|FILE:CLASS",
            "bernoulli for binary data, negative-binomial for counts, tabular for tables, else "
            "gaussian, its scale learned",
        ),
    ] = None
    """p(x|z)"""
    network: Part = "mlp"
    """the networks of encoder and decoder: mlp, gated, residual, conv, residual-conv, gru, lstm;
    the last two are for --sequences, and imply it. Channels and strides of convolutions that are
    given are the decoder's too, backwards. A class of your own is that of both networks: it takes
    in_shape and out_shape, the shapes of one input and of one output, and keeps its arguments as
    attributes"""
    hidden: Annotated[
        int | None,
        _auto(
            "INT",
            "400 for mlp, 300 for gated, 256 for residual, 32 for conv, 128 for gru and lstm",
        ),
    ] = None
    """the width of every hidden layer; --network.hidden gives each its own"""
    latent_dim: int = 50
    """the number of latent dimensions"""
    beta: float = 1.0
    """the weight of the KL term in the training loss"""


@dataclass
class Resume:
    """Go on with a run that was broken off, or that is to take more epochs."""

    run: RunPath
    epochs: Annotated[int | None, _auto("INT", "as many as it was to take")] = None
    """how many epochs it is to take in all; a cosine schedule is stretched over all of them"""
    data_dir: OldDataDir = None
    """where named data sets lie"""
    device: Device = None
    """cpu or cuda"""


@dataclass
class New:
    """Write the plain VAE as one file, to be edited and trained."""

    path: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE.py")]]


@dataclass
class Doctor:
    """Say what there is to work with: versions, devices, compiler, folders, data sets."""


@dataclass
class _OfRun:
    run: RunPath
    program: Annotated[str | None, _auto("FILE[:NAME]", "the file that was trained")] = None
    """the file that the run's program is in, if not where and as it was"""
    trust_source: bool = False
    """run the run's own copy of a file that is no longer where and as it was"""
    data_dir: OldDataDir = None
    """where named data sets lie"""
    device: Device = None
    """cpu or cuda"""


@dataclass
class Evaluate(_OfRun):
    """Measure a run: ELBO, log p(x) and their errors, in nats per example."""

    num_samples: int = 5000
    """the importance samples of each example"""
    limit: Annotated[int | None, _auto("INT", "all")] = None
    """how many examples, the first ones"""
    data: OtherData = None
    """other data to measure it on, preprocessed as the run's own were"""
    json: bool = False
    """print one JSON object and nothing else"""
    seed: int = 0
    """the seed of the samples"""


@dataclass
class Encode(_OfRun):
    """Write the latents of examples, a row for each: their posterior means."""

    data: OtherData = None
    """other data to encode, preprocessed as the run's own were; after RUN, --data itself may be
    left out"""
    split: Annotated[Literal["train", "valid", "test"], tyro.conf.arg(name="split")] = "test"
    """the examples of the run's own data"""
    output: Annotated[
        Path | None,
        _output("PATH.npz", "RUN/encode/SPLIT.npz, or of other data RUN/encode/NAME.npz"),
    ] = None
    """the file to write: an array for each latent, y where there are labels, and names: the files
    of a folder's images, or the numbers of the rows in their source"""


@dataclass
class Export(_OfRun):
    """Write ONNX files of encoder and decoder, for whatever runs without Python."""

    output: Annotated[Path | None, _output("FOLDER", "RUN/export")] = None
    """the folder for encoder.onnx, decoder.onnx, and metadata.json, which says what they take"""


@dataclass
class _Draws(_OfRun):
    data: OtherData = None
    """other data to show it on, preprocessed as the run's own were"""
    output: Annotated[
        Path | None,
        _output("PATH", "RUN/VERB/VERB.png, with VERB.npz, and VERB.csv of a table, beside it"),
    ] = None
    """the picture to write, as .png, or the numbers in it, as .npz, or of a table .csv"""


@dataclass
class Sample(_Draws):
    """Draw new examples from the prior."""

    count: int = 64
    """how many"""
    seed: int = 0
    """the seed of the samples"""
    draw: bool = False
    """draw x from its likelihood, rather than show its mean"""


@dataclass
class Reconstruct(_Draws):
    """Show held-out examples above their reconstructions."""

    count: int = 10
    """how many"""


@dataclass
class Traverse(_Draws):
    """Move single latent dimensions of one held-out example."""

    example: int = 0
    """the index of the example"""
    dims: Annotated[tuple[int, ...] | None, _auto("INT [INT ...]", "the ten that vary most")] = (
        None
    )
    """the dimensions"""
    site: Annotated[str | None, _auto("NAME", "z")] = None
    """the latent site"""


@dataclass
class Interpolate(_Draws):
    """Go from one held-out example to another in latent space."""

    start: int = 0
    """the index of the first example"""
    end: int = 1
    """the index of the last example"""
    steps: int = 10
    """the number of pictures"""


@dataclass
class Explore(_OfRun):
    """Move a run's latents, and encode images of your own, on a page in the browser.

    It is served to this machine alone, until Ctrl-C.
    """

    data: OtherData = None
    """other data to show it on, preprocessed as the run's own were"""
    port: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: one that is free)")] = 0
    """the port of the page"""
    open: bool = True
    """open the page in the browser"""


@dataclass
class Report(_OfRun):
    """Write a run's report.html anew."""


VERBS = {
    "new": New,
    "train": Train,
    "resume": Resume,
    "evaluate": Evaluate,
    "encode": Encode,
    "export": Export,
    "sample": Sample,
    "reconstruct": Reconstruct,
    "traverse": Traverse,
    "interpolate": Interpolate,
    "explore": Explore,
    "report": Report,
    "doctor": Doctor,
}
