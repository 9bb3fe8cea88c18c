"""What memory there is, and what a computation takes of it."""

import pytest
import torch
from linear_gaussian import linear_gaussian

from pyrovae import draws, evaluate, evaluation, memory
from pyrovae.evaluation import log_evidence
from pyrovae.memory import available, peak_of
from pyrovae.terms import draw_terms

CPU = torch.device("cpu")
MB = 4 * 250_000  # bytes of as many floats


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine made of files, with 3 GiB to be had, and a process in one of its groups."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    inner = tmp_path / "groups" / "slice" / "inner"
    (tmp_path / "proc" / "self").mkdir(parents=True)
    inner.mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(
        f"MemTotal: 99 kB\nMemAvailable:    {3 * 2**20} kB\nHugePages: 0\n"
    )
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slice/inner\n")
    return inner


def limit(group, most, taken, file_cache=0):
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{taken}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {file_cache}\n")


def test_memory_is_that_of_the_machine_or_of_the_tightest_group(machine):
    assert available(CPU) == 3 * 2**30
    limit(machine, "max", 10)
    assert available(CPU) == 3 * 2**30
    limit(machine, 2000, 600, file_cache=100)
    assert available(CPU) == 1500
    limit(machine.parent, 1500, 600)
    assert available(CPU) == 900
    limit(machine.parent, 500, 600)
    assert available(CPU) == 0


def test_where_nothing_tells_memory_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROC", tmp_path / "none")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "none")
    assert available(CPU) is None
    case = linear_gaussian(5)
    assert evaluate(case.vae, case.examples, num_samples=2).num_examples == 5


def test_the_peak_counts_what_is_alive_at_one_time():
    before = torch.ones(250_000)

    def three_at_once():
        a = before + 1
        b = a.view(500, 500).T  # a view takes nothing
        c = b * 2
        del a, b
        d = c.contiguous() + c.contiguous()
        return d.sum()

    assert peak_of(three_at_once) == pytest.approx(4 * MB, abs=100)
    assert peak_of(lambda: [torch.zeros(250_000).sum() for _ in range(9)]) == pytest.approx(
        MB, abs=100
    )
    assert peak_of(lambda: before.mul_(2)) == 0


def test_where_memory_is_short_fewer_are_drawn_at_a_time(monkeypatch):
    case = linear_gaussian(8, shift=0.4)
    usual = evaluate(case.vae, case.examples, num_samples=4000)
    drawn, per_draw = [], 0.0

    def recorded(program, batch, count, structure):
        drawn.append(count * len(batch.x))
        return draw_terms(program, batch, count, structure)

    monkeypatch.setattr(draws, "draw_terms", recorded)
    for at_hand in (2**20, 2**21):
        drawn.clear()
        monkeypatch.setattr(evaluation, "available", lambda _, at_hand=at_hand: at_hand)
        found = evaluate(case.vae, case.examples, num_samples=4000)
        error = (found.log_evidence_error.square() + usual.log_evidence_error.square()).sqrt()
        assert ((found.log_evidence - usual.log_evidence).abs() < 5 * error).all()
        # As twice the memory allows, twice as many: and they do take what they may.
        per_draw, last = at_hand / max(drawn), per_draw
        assert last == 0 or per_draw == pytest.approx(last, rel=0.1)
    assert max(drawn) < 8 * 4000
    assert log_evidence(case.vae, case.x[:2], num_samples=50).isfinite().all()


def test_what_is_drawn_at_a_time_fits_into_its_share(monkeypatch):
    case, at_hand, peaks = linear_gaussian(8), 2**21, []

    def metered(*args):
        found = []
        peaks.append(peak_of(lambda: found.append(draw_terms(*args))))
        return found[0]

    monkeypatch.setattr(draws, "draw_terms", metered)
    monkeypatch.setattr(evaluation, "available", lambda _: at_hand)
    evaluate(case.vae, case.examples, num_samples=4000)
    assert 0.3 * at_hand < max(peaks) < 0.6 * at_hand
