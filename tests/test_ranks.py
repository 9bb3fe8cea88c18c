"""Several processes: the numbers are those of one, and what befalls one befalls all."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64
from torch import nn

import pyrovae
from pyrovae import cli, shared_noise
from pyrovae.capture import CaptureError, capture, compile_graph
from pyrovae.devices import count_idle, resolve_device
from pyrovae.errors import InputError
from pyrovae.handlers import share_noise
from pyrovae.inspection import inspect_program
from pyrovae.ranks import ALONE, Ranks, joined
from pyrovae.svi import Exchange, Objective, Stepper
from pyrovae.svi.passes import Call, Outcome, run_in_python
from pyrovae.svi.updates import Update

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(what, out, *, size=2):
    """Starts processes that find each other as they would from `torchrun`."""
    out.mkdir(exist_ok=True)
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", HERE / "on_ranks.py", what, out],
            env=ENVIRONMENT | group | {"RANK": str(rank)},
        )
        for rank in range(size)
    ]


def results(out, size=2):
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]


def finished(what, out, *, size=2):
    codes = [process.wait(300) for process in start(what, out, size=size)]
    assert codes == [0] * size
    return results(out, size)


def torchrun(*command, **options):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        **options,
    )


# ── Shares ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 6, 20, 101])
def test_every_row_is_in_one_share(count, size):
    everyone = [Ranks(rank, size) for rank in range(size)]
    shares = [ranks.rows(torch.arange(count)) for ranks in everyone]
    assert torch.cat(shares).sort().values.tolist() == list(range(count))
    assert [ranks.share(count) for ranks in everyone] == [len(s) / count for s in shares]


def test_an_epoch_is_shared_out_batch_by_batch():
    x = torch.arange(21.0)[:, None]
    told = {"seed": 3, "epoch": 2}
    whole = [raw.rows for raw in pyrovae.Examples(x).shuffled(4, **told)]
    shares = [
        [raw.rows for raw in pyrovae.Examples(x).shuffled(4, **told, ranks=Ranks(rank, 2))]
        for rank in range(2)
    ]
    for batch, first, second in zip(whole[:-1], *[share[:-1] for share in shares], strict=True):
        assert sorted([*first.tolist(), *second.tolist()]) == sorted(batch.tolist())
    # The last batch has one row: the second process stands in with it, and does not count.
    assert [share[-1].tolist() for share in shares] == [whole[-1].tolist()] * 2
    assert Ranks(1, 2).share(1) == 0


def test_one_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with joined() as ranks:
        assert ranks is ALONE
    tensor = torch.ones(3)
    assert ALONE.sum(tensor) is tensor
    assert ALONE.key == ()
    assert ALONE.ask(1, 2)() == (1, 2)
    assert ALONE.text_of_first("é" * 2000) == "é" * 1000


# ── The step ─────────────────────────────────────────────────────────────────────────────────


class Given(nn.Module):
    """A program whose noise is a column of its data, with a latent that all rows share."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.unused = nn.Parameter(torch.zeros(2))
        self.noise = 0.7

    def model(self, x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 40, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w * z, 1.0).expand([len(x), 3]).to_event(1), obs=x[:, :3])

    def guide(self, x):
        w = self.loc + self.noise
        pyro.sample("w", dist.Delta(w, dist.Normal(self.loc, 1.0).log_prob(w)))
        with pyro.plate("data", 40, subsample_size=len(x)):
            q = dist.Normal(self.net(x[:, :3]), 1.0).to_event(1)
            z = q.mean + x[:, 3:]
            pyro.sample("z", dist.Delta(z, q.log_prob(z), event_dim=1))


def update_of(program):
    return Update(torch.optim.SGD(program.parameters(), lr=0.1))


class Recorded(Ranks):
    """One of several processes, whose sum is made of what the others have given so far."""

    def __init__(self, rank, size, given):
        super().__init__(rank, size)
        self.given = given

    def sum(self, tensor):
        self.given.append(tensor.clone())
        return tensor.copy_(torch.stack(self.given).sum(0))


@pytest.mark.parametrize("count", [7, 8, 1])
def test_two_shares_give_the_gradient_of_their_batch(count):
    with float64():
        torch.manual_seed(0)
        program = Given()
        x = torch.randn(count, 4)
        objective = Objective(
            program, inspect_program(program, pyrovae.data.Batch(x)), pyro.infer.Trace_ELBO()
        )

        def passed(rows):
            call = Call((rows, None), {})
            return run_in_python(objective, call, [program], update_of(program))

        whole = passed(x)
        given = []
        for rank in range(2):
            ranks = Recorded(rank, 2, given)
            exchange = Exchange(ranks, dict(program.named_parameters()))
            exchange.share = ranks.share(count)
            found = exchange(passed(ranks.rows(x) if exchange.share else x[:1]))
    assert list(found.parameters) == list(whole.parameters)
    torch.testing.assert_close(found.loss, whole.loss)
    torch.testing.assert_close(found.grad_norm, whole.grad_norm)
    for mine, theirs in zip(found.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_row_that_does_not_count_may_be_infinite():
    given = []
    with float64():
        program = Given()
        exchange = Exchange(Recorded(1, 2, given), dict(program.named_parameters()))
        exchange.share = 0.0
        x = torch.full((1, 4), torch.inf)
        objective = Objective(
            program,
            inspect_program(program, pyrovae.data.Batch(torch.randn(2, 4))),
            pyro.infer.Trace_ELBO(),
        )
        with pyro.validation_enabled(False):
            found = exchange(
                run_in_python(objective, Call((x, None), {}), [program], update_of(program))
            )
    assert found.loss == 0


def test_a_parameter_has_the_gradient_that_another_process_found():
    told = {name: nn.Parameter(torch.ones(2)) for name in ("first", "neither", "second")}
    given = []
    for rank, name in enumerate(("first", "second")):
        exchange = Exchange(Recorded(rank, 2, given), told)
        exchange.share = 0.25 + 0.5 * rank
        gradient = torch.full((2,), 4.0)
        own = Outcome({name: told[name]}, torch.tensor(8.0), gradient.norm(), [gradient])
        found = exchange(own)
    assert list(found.parameters) == ["first", "second"]
    assert [gradient.tolist() for gradient in found.gradients] == [[1.0, 1.0], [3.0, 3.0]]
    assert found.loss == 8.0


def test_a_gradient_keeps_the_layout_of_its_parameter():
    weight = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    loss = weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    found = Exchange(Recorded(0, 2, []), {"w": weight})(
        Outcome({"w": weight}, loss.detach(), gradient.norm(), [gradient])
    )
    assert found.gradients[0].stride() == weight.stride()
    torch.testing.assert_close(found.gradients[0], gradient)


# ── Noise ────────────────────────────────────────────────────────────────────────────────────


def mixed():
    """A draw of each stream, and of each again."""
    first = torch.randn(3)
    shared_noise.exchange()
    second = torch.randn(3)
    shared_noise.exchange()
    third = torch.rand(3)
    shared_noise.exchange()
    return first, second, third, torch.rand(3)


def drawn(own, function=mixed):
    torch.manual_seed(own)
    shared_noise.seed("shared", device=torch.device("cpu"))
    return function()


@pytest.mark.parametrize("engine", ["eager", "graph", "inductor"])
def test_a_stream_is_shared_and_the_other_is_not(engine):
    if engine == "eager":
        run = mixed
    else:
        x = torch.zeros(())
        graph = capture(lambda x: [d + x for d in mixed()], [x])
        run = (lambda: graph(x)) if engine == "graph" else None
        compiled = run or compile_graph(graph, [x])
        run = run or (lambda: compiled(x))
    one, other = drawn(1, run), drawn(2, run)
    for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(mine, theirs) == (index % 2 == 1)
    for found, expected in zip(one, drawn(1), strict=True):
        torch.testing.assert_close(found, expected)


def test_shared_noise_after_noise_that_depends_is_not_compiled():
    def late(x):
        first = torch.poisson(x)
        shared_noise.exchange()
        second = torch.randn(3)
        shared_noise.exchange()
        return [first, second]

    shared_noise.seed(0, device=torch.device("cpu"))
    graph = capture(late, [torch.ones(3)])
    with pytest.raises(CaptureError, match="follows noise that depends"):
        compile_graph(graph, [torch.ones(3)])


def test_latents_outside_the_plate_are_drawn_alike():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("other", 2):
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        return z, w, v

    def run():
        return share_noise("data")(model)(torch.zeros(4))

    (z, w, v), (z_too, w_too, v_too) = drawn(1, run), drawn(2, run)
    assert (z != z_too).all()
    assert w == w_too
    assert torch.equal(v, v_too)


# ── Two processes ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    out = tmp_path_factory.mktemp("facts")
    return finished("facts", out), out


def test_both_processes_have_the_same_weights_and_records(facts):
    first, second = (found["plain"] for found in facts[0])
    assert first["weights"] == second["weights"]
    assert first["records"] == second["records"]
    assert first["processes"] == 2
    assert len(first["records"]) == 3


def test_what_is_copied_may_be_of_any_type_and_layout(facts):
    first, second = (found["copied"] for found in facts[0])
    assert first == second
    assert first[0] == [[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]]
    assert first[2:] == [[0, 1, 2], 5, []]


def test_one_that_fails_to_prepare_keeps_step_with_the_others(facts):
    first, second = (found["unprepared"] for found in facts[0])
    assert first == second


def test_the_first_alone_writes_and_calls_back(facts):
    (first, second), out = facts
    assert first["plain"]["path"] == str(out / "plain")
    assert second["plain"]["path"] == "None"
    assert first["plain"]["called"] == [1, 2, 3]
    assert second["plain"]["called"] == []
    lines = (out / "plain" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert pyrovae.load(out / "plain", data=torch.zeros(4, 6)).config["processes"] == 2


def test_the_numbers_are_near_those_of_one_process(facts):
    from on_ranks import train
    from programs_for_tests import binary

    alone = train(valid=binary(7, seed=1), patience=5, kl_warmup=1, clip_norm=1.0)
    last = facts[0][0]["plain"]["records"][-1]
    assert last["step"] == alone.metrics[-1]["step"]
    for name in ("loss", "train_elbo", "valid_elbo", "grad_norm"):
        # Other noise, and else the same: the first weights, the order, the schedules.
        assert last[name] == pytest.approx(alone.metrics[-1][name], rel=0.1)


@pytest.mark.parametrize("what", ["exact", "experts", "sparse"])
def test_without_noise_the_numbers_are_those_of_one_process(facts, what):
    import on_ranks

    alone = getattr(on_ranks, what)()
    for found in facts[0]:
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(
                torch.tensor(found[what]["weights"][name]),
                torch.tensor(weight),
                rtol=1e-5,
                atol=1e-6,
            )
        for mine, theirs in zip(found[what]["records"], alone["records"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_each_back_end_shares_the_noise_of_global_latents(facts):
    first, second = (found["noise"] for found in facts[0])
    for engine in ("eager", "graph", "inductor"):
        assert first[engine]["used"] == second[engine]["used"] == engine
        assert first[engine]["shared"] == second[engine]["shared"]
        assert first[engine]["own"] != second[engine]["own"]
        assert first[engine]["shared"] == pytest.approx(first["eager"]["shared"], rel=1e-5)


def test_nan_in_one_share_reaches_no_weight(facts):
    first, second = (found["failing"] for found in facts[0])
    for found in (first, second):
        assert found["type"] == "NonFiniteError"
        assert found["finite"]
        assert found["error"].startswith("In epoch 3, batch 1 (step 13), process")
    assert "in another process" in first["error"]
    assert "process 2 of 2" in second["error"]
    assert "site 'x'" in second["error"]


def test_a_step_that_fails_in_one_process_is_known_to_the_others(facts):
    first, second = (found["raising"] for found in facts[0])
    assert first["type"] == "NonFiniteError"
    assert "in another process" in first["error"]
    assert second["type"] == "RuntimeError"
    assert second["error"].startswith("It cannot go on.")


# ── What befalls them ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return finished("whole", tmp_path_factory.mktemp("whole"))[0]


def test_killed_processes_are_started_anew_to_the_same_bits(tmp_path, uninterrupted):
    told = torchrun("--max-restarts", "3", HERE / "on_ranks.py", "killed", tmp_path)
    assert told.returncode == 0, told.stderr
    first, second = results(tmp_path)
    assert first["restarts"] == second["restarts"] == 1
    assert first["weights"] == second["weights"] == uninterrupted["weights"]
    assert first["records"] == second["records"] == uninterrupted["records"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    out = tmp_path_factory.mktemp("ended")
    codes = [process.wait(120) for process in start("told_to_end", out)]
    assert codes == [143, 143]
    return out


def test_a_signal_to_one_ends_all_at_the_same_step(ended, tmp_path, uninterrupted):
    lines = (ended / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1  # it came in the second epoch
    shutil.copytree(ended, tmp_path / "again")
    for found in finished("whole", tmp_path / "again"):
        assert found["weights"] == uninterrupted["weights"]
        assert found["records"] == uninterrupted["records"]
        assert found["warned"] == []


def test_a_signal_that_comes_late_ends_all_at_the_same_step(tmp_path):
    codes = [process.wait(120) for process in start("told_late", tmp_path / "late")]
    assert codes == [143, 143]


def test_processes_can_meet_again(tmp_path):
    told = torchrun("--standalone", HERE / "on_ranks.py", "again", tmp_path)
    assert told.returncode == 0, told.stderr
    assert [found["size"] for found in results(tmp_path)] == [2, 2]


def test_a_process_ends_while_a_worker_that_it_forked_lives():
    with Ranks(0, 2).never_stuck():
        told_at = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(told_at, warn_on_full_buffer=False)
        of_worker = os.dup(told_at)
        ends = threading.Timer(10, os.close, [of_worker])
        ends.start()
        start = time.monotonic()
    assert time.monotonic() - start < 5
    ends.cancel()
    os.close(of_worker)


def test_a_run_goes_on_on_another_number_of_processes(ended, tmp_path, uninterrupted):
    shutil.copytree(ended, tmp_path / "again")
    (found,) = finished("whole", tmp_path / "again", size=1)
    assert len(found["warned"]) == 1
    assert "trained on 2 processes and goes on on 1" in found["warned"][0]
    last, theirs = found["records"][-1], uninterrupted["records"][-1]
    assert found["weights"] != uninterrupted["weights"]
    assert last["step"] == theirs["step"]
    assert last["loss"] == pytest.approx(theirs["loss"], rel=0.1)


def test_a_process_that_waits_for_one_that_does_not_answer_can_be_ended(tmp_path):
    first, second = start("stuck", tmp_path)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "waiting").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 143
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


# ── The command line ─────────────────────────────────────────────────────────────────────────


def test_train_on_two_processes(tmp_path):
    told = torchrun(
        *("--standalone", "-m", "pyrovae", "train", "--epochs", "2", "--hidden", "16"),
        *("--run-dir", "run", "--device", "cpu"),
        cwd=tmp_path,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("device  ") == 1
    assert "2 processes, each with a share of every batch" in told.stdout
    assert told.stdout.count("test ELBO") == 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["processes"] == 2
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_start_anew_goes_on_with_what_it_had_begun(tmp_path, monkeypatch):
    from pyrovae.cli import launches

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    options = type("Options", (), {"run_dir": None})()
    for name, launch in (("mine", f"abc-{os.getppid()}"), ("other", "abc-1")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "environment.json").write_text(json.dumps({"launch": launch}))
    assert launches.begun_before(options, ALONE) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launches.begun_before(options, ALONE) == Path("runs/mine")
    assert launches.begun_before(options, None) is None
    options.run_dir = tmp_path / "runs" / "other"
    assert launches.begun_before(options, ALONE) is None


# ── Back ends ────────────────────────────────────────────────────────────────────────────────


def test_a_back_end_is_changed_for_that_of_the_first():
    program = Given()
    x = torch.randn(4, 4)
    objective = Objective(
        program, inspect_program(program, pyrovae.data.Batch(x)), pyro.infer.Trace_ELBO()
    )
    step = Stepper(
        objective, torch.optim.Adam(program.parameters()), owners=[program], engine="graph"
    )
    assert step.prepare(x, None)["name"] == "graph"
    assert step.prepare(x, None, engine="eager")["name"] == "eager"
    step(x, None)
    assert step.engines == ["eager"]


def test_what_is_started_anew_after_the_training_measures_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["train", "--epochs", "1", "--hidden", "8", "--device", "cpu", "--json"])
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(cli, "begun_before", lambda *_: Path(first["run"]))
    cli.main(["train", "--epochs", "1", "--hidden", "8", "--device", "cpu", "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["run"].endswith(first["run"])
    assert again["elbo"] == first["elbo"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


# ── Devices and refusals ─────────────────────────────────────────────────────────────────────


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("pyrovae.devices.cuda_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert resolve_device(None) == torch.device("cuda")
    assert count_idle(torch.device("cuda")) == 1
    assert count_idle(torch.device("cpu")) == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device(None) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="has no GPU: there are 2"):
        resolve_device(None)


class Silent(Ranks):
    """One of two processes, which hears nothing of the other but what it is given."""

    heard = ""

    def text_of_first(self, text):
        return self.heard

    def wait(self):
        pass


class PlateOfABatch(Given):
    """The same, but its plate does not know how many examples there are."""

    def model(self, x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w * z, 1.0).expand([len(x), 3]).to_event(1), obs=x[:, :3])

    def guide(self, x):
        pyro.sample("w", dist.Normal(self.loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, :3]), 1.0).to_event(1))


def test_a_global_latent_that_every_process_would_count_is_refused(monkeypatch):
    monkeypatch.setattr("pyrovae.training.joined", lambda: nullcontext(Silent(0, 2)))
    with pytest.raises(InputError, match="every process would count"):
        pyrovae.fit(PlateOfABatch(), torch.randn(20, 4), device="cpu", progress=False)


def test_a_process_that_does_not_find_the_run_is_refused(monkeypatch, tmp_path):
    ranks = Silent(1, 2)
    ranks.heard = "7"
    monkeypatch.setattr("pyrovae.training.joined", lambda: nullcontext(ranks))
    with pytest.raises(InputError, match="goes on from step 7"):
        pyrovae.fit(
            Given(), torch.randn(20, 4), run_dir=tmp_path / "run", resume=True, progress=False
        )
