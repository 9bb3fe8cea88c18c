"""What every part promises: one line for each part, one body for all of them.

A new part needs one line in `PARTS_UNDER_TEST`; the last test says so where it is missing.
"""

import inspect
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from pyro.distributions import transforms as T
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.decoders import (
    BernoulliDecoder,
    BetaDecoder,
    CategoricalDecoder,
    ContinuousBernoulliDecoder,
    DiscretizedLogisticDecoder,
    DiscretizedLogisticMixtureDecoder,
    GaussianDecoder,
    LaplaceDecoder,
    MultinomialDecoder,
    NanMaskedDecoder,
    NegativeBinomialDecoder,
    PixelCNNDecoder,
    PixelwiseGaussianDecoder,
    PoissonDecoder,
    RecurrentTextDecoder,
    StudentTDecoder,
    TabularDecoder,
    ZeroInflatedNegativeBinomialDecoder,
)
from pyrovae.encoders import (
    BernoulliEncoder,
    BetaEncoder,
    CategoricalEncoder,
    FullCovarianceGaussianEncoder,
    GaussianEncoder,
    IAFEncoder,
    LowRankGaussianEncoder,
    MixtureEncoder,
    PowerSphericalEncoder,
    RefinedEncoder,
    RelaxedBernoulliEncoder,
    RelaxedCategoricalEncoder,
    SplineFlowEncoder,
    StraightThroughBernoulliEncoder,
    StraightThroughCategoricalEncoder,
    VonMisesFisherEncoder,
)
from pyrovae.errors import InputError
from pyrovae.networks import (
    MLP,
    Centred,
    ConvNet,
    DeconvNet,
    GatedMLP,
    Log1p,
    NanMaskedInput,
    RecurrentDecoderNet,
    RecurrentEncoderNet,
    ResidualConvNet,
    ResidualDeconvNet,
    ResidualMLP,
    Scaled,
    TabularInput,
    TokenEncoderNet,
)
from pyrovae.parts import PARTS, from_config, to_config
from pyrovae.priors import (
    AutoregressiveGaussianPrior,
    BernoulliPrior,
    CategoricalPrior,
    DiagonalGaussian,
    ExemplarPrior,
    FlowPrior,
    GaussianMixture,
    LaplacePrior,
    PowerSphericalPrior,
    RealNVPPrior,
    RelaxedBernoulliPrior,
    RelaxedCategoricalPrior,
    SphericalUniformPrior,
    SplineFlowPrior,
    StandardNormal,
    StudentTPrior,
    UniformPrior,
    VampPrior,
    VonMisesFisherPrior,
)

Z, X, IMAGE = (3,), (5,), (2, 5, 7)
CODES = (6,)  # two one-hot codes of three classes


class Part(NamedTuple):
    """A constructor, the shape of one input (None for a prior), and of one output or event.

    `values` are events at the edges of a support that `edges` does not know, an ordinary one
    first. `given` makes one input where standard normal numbers are none. `reads` are the
    modules that it was given to look at, and that it does not train. `named` is whether a
    configuration can name what it is made of.
    """

    make: Callable[[], nn.Module]
    takes: tuple[int, ...] | None
    gives: tuple[int, ...]
    values: Callable[[], list[Tensor]] | None = None
    given: Callable[[], Tensor] | None = None
    reads: tuple[str, ...] = ()
    named: bool = True


def up(*shape: int) -> nn.Module:
    return MLP(Z, shape, hidden=(4,))


def down(size: int) -> nn.Module:
    return MLP(X, (size,), hidden=(4,))


def within_unit(*shape: int) -> list[Tensor]:
    return [torch.full(shape, number) for number in (0.3, 1e-9, 1 - 2**-24)]


def residual(groups: int) -> dict:
    return {"channels": (4, 6), "strides": (1, 2), "groups": groups}


def text() -> Tensor:
    return torch.randint(6, X).float()


def directions() -> list[Tensor]:
    """Unit vectors: one in general position, and one along an axis."""
    return [
        torch.tensor([2.0, -3.0, 6.0], dtype=torch.float64) / 7,
        torch.tensor([0.0, -1.0, 0.0]),
    ]


def codes() -> list[Tensor]:
    return [torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])]


def relaxed_codes() -> list[Tensor]:
    """Points inside two simplices, and at their edges."""
    inside = torch.tensor([0.5, 0.25, 0.25, 0.125, 0.5, 0.375])
    return [inside, *codes(), torch.tensor([0.5, 0.5, 0.0, 0.0, 0.5, 0.5])]


def coding(encoder: type[nn.Module]) -> nn.Module:
    return encoder(MLP(X, CODES, hidden=(4,)), classes=3)


def holes(*shape: int) -> Tensor:
    return torch.where(torch.rand(shape) < 0.3, torch.nan, torch.randn(shape))


def stack() -> list[T.Transform]:
    """Bijections that hold what no module of their list does."""
    affine = T.AffineTransform(torch.randn(3), torch.rand(3) + 0.5, event_dim=1)
    return [affine, T.affine_coupling(3, [4]).inv, T.permute(3), T.affine_coupling(3, [4])]


# A column of each kind, twice one, and rows of the table: an ordinary one, and its edges.
COLUMNS = (3, 0, 4, 2, 0)
ROWS = [(1.0, 0.3, 2.0, 1.0, -0.7), (0.0, -1e4, 0.0, 0.0, 1e4), (2.0, 1e4, 3.0, 1.0, -1e4)]

PARTS_UNDER_TEST = [
    Part(lambda: StandardNormal(3), None, Z),
    Part(lambda: DiagonalGaussian(3), None, Z),
    Part(lambda: GaussianMixture(3, components=4), None, Z),
    Part(lambda: SphericalUniformPrior(3), None, Z, directions),
    Part(lambda: PowerSphericalPrior(3), None, Z, directions),
    Part(lambda: VonMisesFisherPrior(3), None, Z, directions),
    Part(lambda: BernoulliPrior(3), None, Z),
    Part(lambda: BernoulliPrior(3, learn_logits=True), None, Z),
    Part(lambda: CategoricalPrior(6, classes=3), None, CODES, codes),
    Part(lambda: CategoricalPrior(6, classes=3, learn_logits=True), None, CODES, codes),
    Part(lambda: RelaxedBernoulliPrior(3, learn_logits=True), None, Z),
    Part(
        lambda: RelaxedCategoricalPrior(6, classes=3, learn_logits=True),
        None,
        CODES,
        relaxed_codes,
    ),
    Part(lambda: RealNVPPrior(3, layers=2, hidden=4), None, Z),
    Part(lambda: SplineFlowPrior(3, layers=2, bins=3, hidden=4), None, Z),
    Part(lambda: FlowPrior(3, [T.spline(3), T.affine_coupling(3, [4])]), None, Z, named=False),
    Part(lambda: FlowPrior(3, stack()), None, Z, named=False),
    Part(lambda: LaplacePrior(3), None, Z),
    Part(lambda: StudentTPrior(3), None, Z),
    Part(lambda: UniformPrior(3, low=-2.0, high=0.5), None, Z),
    Part(lambda: AutoregressiveGaussianPrior(3, hidden=(6, 5)), None, Z),
    Part(lambda: VampPrior(GaussianEncoder(down(6)), X, components=4), None, Z),
    Part(
        lambda: VampPrior(MixtureEncoder(down(14), components=2), X, learn_weights=True), None, Z
    ),
    # It takes no more than the mean of its encoder.
    Part(
        lambda: ExemplarPrior(GaussianEncoder(down(6)), torch.rand(7, 5)),
        None,
        Z,
        reads=("encoder",),
    ),
    Part(lambda: GaussianEncoder(MLP(X, (6,), hidden=(4,))), X, Z),
    Part(lambda: IAFEncoder(down(10), layers=2, hidden=8, context=4), X, Z),
    Part(lambda: SplineFlowEncoder(down(10), layers=2, bins=3, hidden=4, context=4), X, Z),
    Part(lambda: GaussianEncoder(ConvNet(IMAGE, (6,), channels=(2,), strides=(2,))), IMAGE, Z),
    Part(lambda: LowRankGaussianEncoder(down(12), rank=2), X, Z),
    Part(lambda: FullCovarianceGaussianEncoder(down(12)), X, Z),
    Part(lambda: MixtureEncoder(down(14), components=2), X, Z),
    Part(
        lambda: RefinedEncoder(
            GaussianEncoder(down(6)), GaussianMixture(3), GaussianDecoder(up(5)), steps=2
        ),
        X,
        Z,
        reads=("prior", "decoder"),
    ),
    Part(lambda: PowerSphericalEncoder(MLP(X, (4,), hidden=(4,))), X, Z, directions),
    Part(lambda: VonMisesFisherEncoder(MLP(X, (4,), hidden=(4,))), X, Z, directions),
    Part(lambda: BetaEncoder(MLP(X, (6,), hidden=(4,)), low=-2.0, high=0.5), X, Z),
    Part(lambda: BernoulliEncoder(MLP(X, Z, hidden=(4,))), X, Z),
    Part(lambda: StraightThroughBernoulliEncoder(MLP(X, Z, hidden=(4,))), X, Z),
    Part(lambda: RelaxedBernoulliEncoder(MLP(X, Z, hidden=(4,))), X, Z),
    Part(lambda: coding(CategoricalEncoder), X, CODES, codes),
    Part(lambda: coding(StraightThroughCategoricalEncoder), X, CODES, codes),
    Part(lambda: coding(RelaxedCategoricalEncoder), X, CODES, relaxed_codes),
    Part(lambda: BernoulliDecoder(up(5)), Z, X),
    Part(lambda: BernoulliDecoder(up(2, 5, 7)), Z, IMAGE),
    Part(lambda: BernoulliDecoder(DeconvNet(Z, IMAGE, coarse=2, channels=(3,))), Z, IMAGE),
    Part(lambda: ContinuousBernoulliDecoder(up(5)), Z, X),
    Part(lambda: ContinuousBernoulliDecoder(up(2, 5, 7)), Z, IMAGE),
    Part(lambda: BetaDecoder(up(10)), Z, X, values=lambda: within_unit(5)),
    Part(lambda: BetaDecoder(up(4, 5, 7)), Z, IMAGE, values=lambda: within_unit(2, 5, 7)),
    Part(lambda: CategoricalDecoder(up(20), classes=4), Z, X),
    Part(lambda: CategoricalDecoder(up(8, 5, 7), classes=4), Z, IMAGE),
    Part(lambda: DiscretizedLogisticDecoder(up(10)), Z, X),
    Part(lambda: DiscretizedLogisticDecoder(up(4, 5, 7), levels=17), Z, IMAGE),
    Part(lambda: DiscretizedLogisticMixtureDecoder(up(30), X, components=2), Z, X),
    Part(lambda: DiscretizedLogisticMixtureDecoder(up(60, 5, 7), IMAGE), Z, IMAGE),
    Part(lambda: GaussianDecoder(up(5), scale=0.3), Z, X),
    Part(lambda: GaussianDecoder(up(2, 5, 7), learn_scale=True), Z, IMAGE),
    Part(lambda: LaplaceDecoder(up(5), scale=0.3), Z, X),
    Part(lambda: LaplaceDecoder(up(2, 5, 7), learn_scale=True), Z, IMAGE),
    Part(lambda: MultinomialDecoder(up(5), total=30), Z, X),
    Part(lambda: NegativeBinomialDecoder(up(5), X), Z, X),
    Part(lambda: NegativeBinomialDecoder(up(2, 5, 7), IMAGE), Z, IMAGE),
    Part(lambda: PixelwiseGaussianDecoder(up(10)), Z, X),
    Part(lambda: PixelwiseGaussianDecoder(up(4, 5, 7)), Z, IMAGE),
    Part(lambda: PoissonDecoder(up(5)), Z, X),
    Part(lambda: PoissonDecoder(up(2, 5, 7)), Z, IMAGE),
    Part(lambda: PoissonDecoder(MLP((Z[0] - 1,), X), latent_size=True), Z, X),
    Part(lambda: StudentTDecoder(up(5), scale=0.3), Z, X),
    Part(lambda: StudentTDecoder(up(2, 5, 7), learn_df=True, learn_scale=True), Z, IMAGE),
    Part(lambda: ZeroInflatedNegativeBinomialDecoder(up(10), X), Z, X),
    Part(lambda: ZeroInflatedNegativeBinomialDecoder(up(4, 5, 7), IMAGE), Z, IMAGE),
    Part(lambda: PixelCNNDecoder(up(4, 5, 7), IMAGE, features=4, layers=1), Z, IMAGE),
    Part(lambda: RecurrentTextDecoder(up(4), X, symbols=6, embedding=2, hidden=4), Z, X),
    Part(lambda: RecurrentTextDecoder(up(4), X, symbols=6, hidden=4, cell="lstm"), Z, X),
    Part(
        lambda: TabularDecoder(up(10), columns=COLUMNS),
        Z,
        X,
        values=lambda: [torch.tensor(row) for row in ROWS],
    ),
    Part(lambda: NanMaskedDecoder(BernoulliDecoder(up(5))), Z, X),
    Part(lambda: NanMaskedDecoder(PixelwiseGaussianDecoder(up(4, 5, 7))), Z, IMAGE),
    Part(lambda: MLP(X, Z, hidden=(4, 2)), X, Z),
    Part(lambda: Centred(MLP(X, Z, hidden=(4,)), levels=4), X, Z),
    Part(lambda: Log1p(MLP(X, Z, hidden=(4,))), X, Z, given=lambda: torch.rand(X)),
    Part(lambda: Scaled(MLP(X, Z, hidden=(4,)), factor=3.0), X, Z),
    Part(lambda: MLP(IMAGE, IMAGE, hidden=(), activation=nn.Tanh), IMAGE, IMAGE),
    Part(lambda: ConvNet(IMAGE, Z, channels=(2, 3), strides=(1, 2), hidden=4), IMAGE, Z),
    Part(lambda: DeconvNet(Z, IMAGE, coarse=9, channels=(8, 3), strides=(2, 1)), Z, IMAGE),
    Part(lambda: GatedMLP(IMAGE, Z, hidden=(4, 2)), IMAGE, Z),
    Part(lambda: ResidualMLP(IMAGE, Z, hidden=4, blocks=2), IMAGE, Z),
    Part(lambda: ResidualConvNet(IMAGE, Z, **residual(2)), IMAGE, Z),
    Part(lambda: ResidualConvNet(IMAGE, Z, **residual(0)), IMAGE, Z),
    Part(lambda: ResidualDeconvNet(Z, IMAGE, **residual(2)), Z, IMAGE),
    Part(lambda: ResidualDeconvNet(Z, IMAGE, **residual(0)), Z, IMAGE),
    Part(lambda: RecurrentEncoderNet((5, 2), Z, hidden=4, bidirectional=True), (5, 2), Z),
    Part(lambda: RecurrentEncoderNet((5, 2), Z, hidden=4, cell="lstm"), (5, 2), Z),
    Part(lambda: RecurrentEncoderNet((5, 2), Z, hidden=4, missing=True), (5, 2), Z),
    Part(lambda: RecurrentDecoderNet(Z, (5, 2), hidden=4), Z, (5, 2)),
    Part(lambda: RecurrentDecoderNet(Z, (10, 2), hidden=4, cell="lstm", steps=5), Z, (10, 2)),
    Part(lambda: TokenEncoderNet(X, Z, symbols=6, hidden=4), X, Z, given=text),
    Part(lambda: TokenEncoderNet(X, Z, symbols=6, hidden=4, cell="lstm"), X, Z, given=text),
    Part(lambda: NanMaskedInput(MLP((10,), Z, hidden=(4,))), X, Z, given=lambda: holes(*X)),
    Part(lambda: NanMaskedInput(ConvNet((4, 5, 7), Z)), IMAGE, Z, given=lambda: holes(*IMAGE)),
    Part(
        lambda: TabularInput(MLP((13,), Z, hidden=(4,)), columns=COLUMNS),
        X,
        Z,
        given=lambda: torch.where(torch.rand(5) < 0.3, torch.nan, torch.tensor(ROWS[0])),
    ),
]


def name_of(part: Part) -> str:
    return f"{type(part.make()).__name__}-{'x'.join(map(str, part.gives))}"


every_part = pytest.mark.parametrize("part", PARTS_UNDER_TEST, ids=name_of)
every_batch = pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)], ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def inputs(part: Part, batch_shape: tuple[int, ...], **options) -> tuple[Tensor, ...]:
    if part.takes is None:
        return ()
    if part.given is None:
        return (torch.randn(*batch_shape, *part.takes, **options),)
    one = [part.given() for _ in range(math.prod(batch_shape))]
    x = torch.stack(one).reshape(*batch_shape, *part.takes)
    return (x.to(**options) if x.is_floating_point() else x,)


def batch_of(part: Part, batch_shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if part.takes is None else batch_shape


def events(part: Part, output: object) -> list[Tensor]:
    """An ordinary event, and events at the ends of the support, or far out where it has none."""
    if part.values is not None:
        return part.values()
    base = output.support
    while hasattr(base, "base_constraint"):
        base = base.base_constraint
    low, high = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if base is constraints.real:
        numbers = (0.3, -1e4, 1e4)
    elif base is constraints.boolean:
        numbers = (0.0, 1.0)
    elif high is None:
        numbers = (low + 2.0, low, 1e4)
    else:
        numbers = ((low + high) // 2 if base.is_discrete else low + 0.3 * (high - low), low, high)
    return [torch.full(part.gives, float(number)) for number in numbers]


def numbers(part: Part, output: object) -> Tensor:
    """A number for each example, through which gradients reach every parameter."""
    if isinstance(output, Tensor):
        return output
    value = events(part, output)[0].to(output.sample().device)
    return output.log_prob(value.to(part_dtype(output, value)))


def part_dtype(output: object, value: Tensor) -> torch.dtype:
    """The precision of a distribution's own events, where they are not whole numbers."""
    drawn = output.sample()
    return drawn.dtype if drawn.is_floating_point() else value.dtype


@every_batch
@every_part
def test_batch_and_event_shapes_are_as_promised(part, batch_shape):
    output = part.make()(*inputs(part, batch_shape))
    if isinstance(output, Tensor):
        assert output.shape == batch_shape + part.gives
    else:
        assert output.batch_shape == batch_of(part, batch_shape)
        assert output.event_shape == part.gives
        assert output.sample((4,)).shape == (4, *output.batch_shape, *part.gives)
        assert output.log_prob(output.sample()).shape == output.batch_shape


@every_part
def test_the_rows_of_a_batch_are_those_of_one_example_at_a_time(part):
    if part.takes is None:
        pytest.skip("a prior takes no input")
    module, (x,) = part.make(), inputs(part, (2, 3))
    whole, alone = numbers(part, module(x)), numbers(part, module(x[1, 2]))
    torch.testing.assert_close(whole[1, 2], alone)


@every_dtype
@every_part
def test_log_probabilities_are_finite_at_draws_and_at_the_edges(part, dtype):
    output = part.make().to(dtype)(*inputs(part, (3,), dtype=dtype))
    if isinstance(output, Tensor):
        assert output.isfinite().all()
    else:
        value = output.sample()
        for point in (value, *(event.to(value.dtype) for event in events(part, output))):
            assert output.log_prob(point.expand_as(value)).isfinite().all()


@every_dtype
@every_part
def test_numbers_keep_the_precision_of_the_module(part, dtype):
    output = part.make().to(dtype)(*inputs(part, (3,), dtype=dtype))
    if not isinstance(output, Tensor):
        assert output.log_prob(output.sample()).dtype == dtype
        output = output.sample()
    assert output.dtype == dtype


def trained(part: Part, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that gradients of a part are for."""
    named = module.named_parameters()
    return [(name, value) for name, value in named if name.split(".")[0] not in part.reads]


@every_part
def test_gradients_reach_every_parameter(part):
    module = part.make()
    if not list(module.parameters()):
        pytest.skip("it has no parameter")
    numbers(part, module(*inputs(part, (30,)))).square().sum().backward()
    for name, parameter in trained(part, module):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert parameter.grad.ne(0).all(), "every output of the last layer"


@every_part
def test_draws_of_an_encoder_carry_gradients_to_every_parameter(part):
    module = part.make()
    output = module(*inputs(part, (30,)))
    if type(module).__module__.split(".")[1] != "encoders" or not output.has_rsample:
        pytest.skip("its draws carry no gradients")
    output.rsample().square().sum().backward()
    parameters = [parameter for _, parameter in trained(part, module)]
    assert all(parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert parameters[-1].grad.ne(0).all(), "the mean and the scale"


@every_part
def test_distributions_expand(part):
    output = part.make()(*inputs(part, (3,)))
    if isinstance(output, Tensor):
        pytest.skip("a network gives a tensor")
    expanded = output.expand((2, 3))
    value = expanded.sample()
    assert value.shape == (2, 3, *part.gives)
    torch.testing.assert_close(expanded.log_prob(value), output.log_prob(value))
    # To the shape that it has, which is none at all of a prior.
    again = output.expand(output.batch_shape)
    assert again.batch_shape == output.batch_shape
    torch.testing.assert_close(again.log_prob(value), output.log_prob(value))


@every_part
def test_a_part_is_built_again_from_plain_data_and_its_saved_weights(part):
    module = part.make()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    if part.named:
        again = from_config(json.loads(json.dumps(to_config(module))))
        assert to_config(again) == to_config(module)
    else:
        again = part.make()
    again.load_state_dict(load(save(module.state_dict())))

    assert type(again) is type(module)
    x = inputs(part, (3,))
    assert torch.equal(numbers(part, module(*x)), numbers(part, again(*x)))


@pytest.mark.usefixtures("gpu")
@every_part
def test_a_part_works_on_cuda_as_on_the_cpu(part):
    module, x = part.make(), inputs(part, (3,))
    expected = numbers(part, module(*x))
    moved = module.cuda()(*(tensor.cuda() for tensor in x))
    if not isinstance(moved, Tensor):
        assert moved.sample().is_cuda
    found = numbers(part, moved)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_every_part_of_the_table_is_tested_here():
    kinds = {"priors", "encoders", "decoders", "networks"}
    tabled = {cls for cls in PARTS.values() if cls.__module__.split(".")[1] in kinds}
    assert tabled == {type(part.make()) for part in PARTS_UNDER_TEST}


def test_shapes_under_test_are_told_apart():
    assert math.prod(IMAGE) not in (*Z, *X)


@every_part
def test_no_number_of_a_part_may_be_none(part):
    """A whole one no fraction, and none a NaN, which would be met at the first step, or never."""
    made = part.make()
    given = {name: getattr(made, name) for name in inspect.signature(type(made)).parameters}
    for name, value in given.items():
        if type(value) in (int, float):
            for wrong in (math.nan, 1.5)[: 1 + isinstance(value, int)]:
                with pytest.raises(InputError):
                    type(made)(**{**given, name: wrong})
