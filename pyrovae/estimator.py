r"""A VAE as an estimator of scikit-learn.

It stands wherever a transformer or a density stands there: in a `Pipeline`, before a classifier,
in a `GridSearchCV` by its `score`, which is the mean $\log p(x)$ as that of `PCA` is.
"""

__all__ = ["VAETransformer"]

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from pyrovae import encoding, evaluation, generation
from pyrovae.building import Choice, build_vae, values_of
from pyrovae.checks import check_whole
from pyrovae.data import AsIs, Batch, Data, Examples, Standardize
from pyrovae.errors import InputError
from pyrovae.preparation import check_options
from pyrovae.programs import as_module, dtype_of
from pyrovae.randomness import seeded
from pyrovae.runs import Run
from pyrovae.schedules import cosine
from pyrovae.training import fit

# scikit-learn is not annotated, and a checker takes its defaults for types.
_validate: Callable[..., Any] = validate_data
_check: Callable[..., Any] = check_array


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A variational autoencoder of a table $(n, d)$, with the interface of scikit-learn.

    `transform` gives the posterior means $E_q[z \mid x]$, `inverse_transform` the means of
    $p(x \mid z)$, `score_samples` $\log p(x)$ by importance sampling. All are in the data's own
    units: a likelihood of real numbers is trained on standardised columns, and for it
    $\log p(x) = \log p(\tilde x) - \sum_i \log s_i$. Numbers are in single precision.

    Args:
        latent_dim: The number of latent dimensions.
        prior: $p(z)$, by the word of the command line: `standard-normal`, `gaussian-mixture`,
            `real-nvp`, ...
        encoder: $q(z \mid x)$, likewise: `gaussian`, `full-covariance-gaussian`, `iaf`, ...
        decoder: $p(x \mid z)$, likewise: `gaussian`, `student-t`, `bernoulli`, `poisson`, ...
        network: The networks of encoder and decoder: `mlp`, `gated` or `residual`.
        hidden: The width of their hidden layers.
        beta: The weight of the KL term in the training loss.
        standardize: Whether the columns of real numbers are standardised for the program.
        epochs: How often to visit every example.
        batch_size: How many examples make a step.
        lr: Adam's learning rate at the start; it falls to zero along a cosine.
        kl_warmup: Over how many epochs the weight of the KL term rises from 0 to 1, without which
            latents may never come to be used; a tenth of them if None.
        num_samples: The importance samples of each example in `score_samples`.
        device: The device to train on; CUDA where there is one if None. The trained program is
            kept on the CPU.
        verbose: Whether to show the progress of training.
        random_state: The seed of weights, order and noise in `fit`, and of the draws of `sample`.

    Attributes:
        run_: The trained program as a `pyrovae.Run`, without the data.
        n_features_in_: The number of columns.
        feature_names_in_: Their names, where the data have names of strings.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> vae = VAETransformer(latent_dim=2, epochs=5, random_state=0)
        >>> z = vae.fit_transform(load_iris().data)
        >>> z.shape, vae.inverse_transform(z).shape
        ((150, 2), (150, 4))
    """

    run_: Run
    n_features_in_: int

    def __init__(
        self,
        latent_dim: int = 10,
        *,
        prior: str = "standard-normal",
        encoder: str = "gaussian",
        decoder: str = "gaussian",
        network: str = "mlp",
        hidden: int = 100,
        beta: float = 1.0,
        standardize: bool = True,
        epochs: int = 100,
        batch_size: int = 128,
        lr: float = 2e-3,
        kl_warmup: float | None = None,
        num_samples: int = 500,
        device: str | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.prior = prior
        self.encoder = encoder
        self.decoder = decoder
        self.network = network
        self.hidden = hidden
        self.beta = beta
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.kl_warmup = kl_warmup
        self.num_samples = num_samples
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> "VAETransformer":
        """Trains on a table (n, d) of real numbers; y is not used.

        Raises:
            InputError: If an option cannot be used, or the data lie outside the likelihood.
        """
        table = _validate(self, X, dtype=np.float32, ensure_min_samples=2)
        check_options(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)
        seed = self._seed()
        data = self._as_data(torch.tensor(table))
        with seeded(seed, "weights"):
            vae = build_vae(
                data,
                prior=Choice(self.prior),
                encoder=Choice(self.encoder),
                decoder=Choice(self.decoder),
                network=self.network,
                hidden=self.hidden,
                latent_dim=self.latent_dim,
                beta=self.beta,
            )
        steps = -(-len(table) // self.batch_size)
        run = fit(
            vae,
            data.train,
            optimizer=partial(torch.optim.Adam, lr=self.lr, fused=True),
            epochs=self.epochs,
            batch_size=self.batch_size,
            kl_warmup=self.epochs / 10 if self.kl_warmup is None else self.kl_warmup,
            lr_schedule=cosine(1.0, 0.0, self.epochs * steps),
            seed=seed,
            device=self.device,
            progress=self.verbose,
        )
        # On the CPU it can be unpickled anywhere; and a table is no load for it.
        as_module(run.program).cpu()
        self.run_ = replace(run, splits={})
        self._n_features_out = self._encode(table[:1]).shape[1]
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """The posterior means of each row, (n, D)."""
        return self._encode(self._table(X)).numpy()

    def inverse_transform(self, Z: ArrayLike) -> NDArray[np.float32]:
        """The mean of x for each row of latents (n, D), in the data's own units, (n, d)."""
        check_is_fitted(self)
        z = _check(Z, dtype=np.float32)
        if z.shape[1] != self._n_features_out:
            raise InputError(
                f"The latents have {z.shape[1]} columns, and those of the fitted VAE "
                f"{self._n_features_out}.",
                "Give what transform returns.",
            )
        found = generation.decode(self.run_.program, {"z": torch.tensor(z)}, self._template)
        return self.run_.preprocessing.invert(found.x).numpy()

    def sample(self, n_samples: int = 1) -> NDArray[np.float32]:
        r"""New rows $z \sim p(z)$, $x \sim p(x \mid z)$, in the data's own units, (n, d).

        With an integer as `random_state` they are the same at every call.

        Raises:
            InputError: If it is less than one.
        """
        check_is_fitted(self)
        check_whole(n_samples=n_samples)
        found = generation.sample(
            self.run_.program, self._template, n_samples, draw=True, seed=self._seed()
        )
        return self.run_.preprocessing.invert(found.x).numpy()

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        r"""$\log p(x)$ of each row, (n,), in nats, by `num_samples` importance samples.

        It is a lower bound in expectation, and the same at every call: the draws of a row follow
        from its values, and not from the rows beside it.

        Raises:
            InputError: If a row lies outside the support of the likelihood.
        """
        x = self._preprocessed(self._table(X))
        log_p = evaluation.log_evidence(self.run_.program, x, num_samples=self.num_samples)
        return (log_p - self._log_volume).numpy()

    def score(self, X: ArrayLike, y: object = None) -> float:
        r"""The mean $\log p(x)$ of the rows, in nats; y is not used."""
        return float(self.score_samples(X).mean())

    # ── What the methods share ──

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _as_data(self, x: Tensor) -> Data:
        """The rows as a data set of which nothing is held out."""
        values = values_of(Choice(self.decoder))
        standardized = self.standardize and values == "real"
        preprocessing = Standardize.of(x) if standardized else AsIs()
        rows = Examples(x, preprocessing=preprocessing)
        return Data(
            "array",
            train=rows,
            valid=rows,
            test=rows,
            values=values,
            split_rule="none is held out",
        )

    def _table(self, X: ArrayLike) -> NDArray[np.float32]:
        """Rows as `fit` took them."""
        check_is_fitted(self)
        return _validate(self, X, dtype=np.float32, reset=False)

    def _preprocessed(self, table: NDArray[np.float32]) -> Tensor:
        return self.run_.preprocessing.apply(torch.tensor(table), None)

    def _encode(self, table: NDArray[np.float32]) -> Tensor:
        examples = Examples(self._preprocessed(table)).in_type(dtype_of(self.run_.program))
        batches = examples.in_order(1000)
        return encoding.latent(encoding.encode(self.run_.program, batches).means, "z")

    @property
    def _template(self) -> Batch:
        return Batch(torch.zeros(1, self.n_features_in_, dtype=dtype_of(self.run_.program)))

    @property
    def _log_volume(self) -> float:
        r"""$\sum_i \log s_i$, what a density of standardised values is too large by."""
        preprocessing: Any = self.run_.preprocessing
        if not isinstance(preprocessing, Standardize):
            return 0.0
        return float(preprocessing.scale.double().log().sum())
