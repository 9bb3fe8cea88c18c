"""Tables from text: types inferred or told, what is missing, what is refused, and rows again."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrovae
from pyrovae import cli
from pyrovae.building import Choice, build_vae
from pyrovae.data import Standardize, load_data, tables
from pyrovae.data.tables import Column, as_config, from_config, read, write
from pyrovae.errors import InputError

MISSING = ["", "?", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NaN", "nan", "NAN"]
MISSING += ["-NaN", "-nan", "NULL", "null", "None", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"]
JOBS = ("clerk", "farmer", "nurse")
SCHEMA = (Column("age"), Column("sex", ("f", "m")), Column("job", JOBS))


def people(count=60, seed=0, lacking=0.0):
    """Rows of an age, a sex and a job, some of them missing."""
    rng = np.random.default_rng(seed)
    rows = np.stack(
        [rng.normal(40, 10, count).round(1), rng.integers(2, size=count), np.arange(count) % 3], 1
    )
    rows[rng.random(rows.shape) < lacking] = np.nan
    return rows


def put(text, folder, name="t.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def csv_file(tmp_path):
    """Makes a table of text, and gives its path."""
    return lambda text, name="t.csv", encoding="utf-8": put(text, tmp_path, name, encoding)


# ── What columns hold ──


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("1 2 3", Column("a", whole=True)),
        ("1.0 -2 3e2 ?", Column("a", whole=True)),
        ("1 2 3.5", Column("a")),
        ("-1.5 2e3 .5", Column("a")),
        ("1 2 ?", Column("a", ("1", "2"))),
        ("10 9 10", Column("a", ("9", "10"))),
        ("no yes no", Column("a", ("no", "yes"))),
        ("b a c", Column("a", ("a", "b", "c"))),
        ("1 2 x", Column("a", ("1", "2", "x"))),
        ("1_0 2 3", Column("a", ("1_0", "2", "3"))),
        ("٣ 2 3", Column("a", ("2", "3", "٣"))),
    ],
)
def test_types_follow_from_the_entries(csv_file, entries, expected):
    text = "\n".join(["a,b", *(f"{e},{i}" for i, e in enumerate(entries.split()))])
    columns = read(csv_file(text)).columns
    assert columns == (expected, Column("b", whole=True))


@pytest.mark.parametrize("missing", [*MISSING, " ? ", '""'])
@pytest.mark.parametrize("name", ["age", "sex", "job"])
def test_what_is_missing_is_nan(csv_file, missing, name):
    rows = ["30.5,f,clerk", "40,m,nurse", "50,f,farmer"]
    entries = ["35", "m", "nurse"]
    entries[["age", "sex", "job"].index(name)] = missing
    table = read(csv_file("\n".join(["age,sex,job", *rows, ",".join(entries)])))
    assert table.columns == SCHEMA
    expected = torch.tensor([35.0, 1.0, 2.0])
    expected[["age", "sex", "job"].index(name)] = math.nan
    torch.testing.assert_close(
        torch.tensor(table.rows[3]).float(), expected, equal_nan=True, rtol=0, atol=0
    )


def test_columns_without_two_values_are_left_out_and_named(csv_file):
    table = read(csv_file("a,b,c,d\n1,x,,7\n2,x,?,7.0\n3,NA,NA,7.00"))
    assert table.columns == (Column("a", whole=True),)
    assert table.notes == ("left out: b (a single value), c (all missing), d (a single value)",)
    with pytest.raises(InputError, match="no column to learn from"):
        read(csv_file("b\nx\nx"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"a": "categorical"}, Column("a", ("1", "2", "10"))),
        ({"a": ["10", "2", "1", "3"]}, Column("a", ("10", "2", "1", "3"))),
        ({"a": "numeric"}, Column("a")),
    ],
)
def test_types_are_as_they_are_told(csv_file, tmp_path, asked, expected):
    path = csv_file("a,b\n1,x\n2,y\n10,x")
    table = read(path, asked)
    assert table.columns == (expected, Column("b", ("x", "y")))
    if expected.categories:
        assert table.rows[:, 0].tolist() == [
            expected.categories.index(t) for t in ("1", "2", "10")
        ]
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(asked))
    assert read(path, schema).columns == read(path, str(schema)).columns == table.columns


def test_a_constant_can_be_asked_for_and_a_column_ignored(csv_file):
    table = read(csv_file("a,b\n5,x\n5,y\n5,z"), {"a": "numeric", "b": "ignore"})
    assert table.columns == (Column("a"),)
    assert table.notes == ("left out: b (ignored)",)


def test_columns_themselves_are_read_alone_and_in_their_order(csv_file):
    path = csv_file("job,id,age\nnurse,1,30\nclerk,2,?")
    table = read(path, (Column("age"), Column("job", JOBS)))
    np.testing.assert_array_equal(table.rows, [[30, 2], [np.nan, 0]])


def test_categories_by_the_thousand_are_refused_unless_they_are_asked_for(csv_file):
    path = csv_file("\n".join(["a,b", *(f"name{i},{i}" for i in range(10_000))]))
    words = r"'a'.*10,000 different texts in 10,000.*'name0'.*ignore"
    with pytest.raises(InputError, match=words):
        read(path)
    assert read(path, {"a": "categorical"}).columns[0].codes == 10_000
    assert read(path, {"a": "ignore"}).columns == (Column("b", whole=True),)
    fewer = csv_file("\n".join(["a,b", *(f"name{i % 1000},{i}" for i in range(2000))]))
    assert read(fewer).columns[0].codes == 1000


@pytest.mark.parametrize(
    ("kinds", "entries", "is_refused"),
    [(50, 50, False), (51, 51, True), (51, 101, True), (51, 102, False), (300, 300, True)],
)
def test_texts_that_hardly_repeat_are_no_categories(csv_file, kinds, entries, is_refused):
    texts = [f"name{i % kinds}" for i in range(entries)] + [""] * 200
    path = csv_file("\n".join(["a,b", *(f"{text},{i}" for i, text in enumerate(texts))]))
    if is_refused:
        with pytest.raises(InputError, match=rf"'a'.*{kinds} .* in {entries} .*--columns"):
            read(path)
    else:
        assert read(path).columns[0].codes == kinds
    assert read(path, {"a": "categorical"}).columns[0].codes == kinds


@pytest.mark.parametrize(
    ("others", "count", "words"),
    [
        ("1,234", 30, r"'1,234' in 30 of 300"),
        ("1,234", 200, r"'1,234' in 200 of 300"),
        ("-", 59, r"'-' in 59 of 300"),
        ("-", 60, None),
        ("a b c d", 40, r"'a' in 10, 'b' in 10, 'c' in 10 and 1 more of 300"),
    ],
)
def test_slips_in_a_column_of_numbers_are_named(csv_file, others, count, words):
    others = others.split()
    texts = [str(i % 30) for i in range(300)]
    texts[:count] = [others[i % len(others)] for i in range(count)]
    path = csv_file("\n".join(["a;b", *(f"{text};{i}" for i, text in enumerate(texts))]))
    if words is None:
        assert read(path).columns[0].kind == "categorical"
        return
    with pytest.raises(InputError, match=f"column 'a' .*numbers, and {words} entries.*--columns"):
        read(path)
    assert "-" not in others or read(path, {"a": "categorical"}).columns[0].codes == 31


# ── What a file may be ──


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_entries_stand_between_commas_semicolons_tabs_or_bars(csv_file, mark):
    text = "age, sex,job\n30.5, f,clerk\n40,m, nurse\n50,f ,farmer\n"
    table = read(csv_file(text.replace(",", mark)))
    assert table.columns == SCHEMA
    assert table.rows.tolist() == [[30.5, 0, 0], [40, 1, 2], [50, 0, 1]]


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", ()),
        ("utf-8-sig", ()),
        ("utf-16", ()),
        ("latin-1", ("it is no UTF-8, and was read as Latin-1",)),
    ],
)
def test_encodings(csv_file, encoding, note):
    table = read(csv_file("größe,b\nÄrzte,1\nö,2\nü,3", encoding=encoding))
    assert table.columns == (Column("größe", ("Ärzte", "ö", "ü")), Column("b", whole=True))
    assert table.notes == note


def test_a_table_of_excel_in_korea_is_read(csv_file):
    table = read(csv_file("나이,지역\n30,서울\n41,부산\n52,똠방", encoding="cp949"))
    assert table.columns == (Column("나이", whole=True), Column("지역", ("똠방", "부산", "서울")))
    assert table.notes == ("it is no UTF-8, and was read as CP949",)
    # Two letters of Latin-1 that CP949 takes for one rare syllable.
    german = read(csv_file("a,b\nÄrzte,1\nAmt,2\nBau,3", encoding="latin-1"))
    assert german.columns[0].categories == ("Amt", "Bau", "Ärzte")


def test_an_empty_line_of_a_single_column_is_an_empty_entry(csv_file):
    table = read(csv_file("\na\n1\n\n2\n\n\n3\n"))
    np.testing.assert_array_equal(table.rows[:, 0], [1, np.nan, 2, np.nan, np.nan, 3])
    again = read(csv_file(write(table.columns, table.rows)))
    np.testing.assert_array_equal(again.rows, table.rows)


def test_rows_without_an_entry_are_counted(csv_file):
    rows = people(60)
    rows[7:1007:5] = np.nan
    lacking, blank = load_data(csv_file(write(SCHEMA, rows))).notes
    assert lacking == "33 of 180 entries are missing (18.3%)"
    assert blank.startswith("11 of the examples have every entry missing")
    rows[7:1007:5, 1] = 0
    (lacking,) = load_data(csv_file(write(SCHEMA, rows))).notes
    assert lacking == "22 of 180 entries are missing (12.2%)"
    assert load_data(csv_file(write(SCHEMA, people(60)))).notes == ()
    assert load_data(np.where(np.arange(60)[:, None] < 2, np.nan, people()), missing=True).notes


# ── Whole numbers ──


def test_whole_numbers_are_written_whole(csv_file):
    """Also where they were written as 3.0, as by pandas beside missing entries."""
    path = csv_file("age,size\n30.0,1.5\n41,1.25\n,1.75\n-3,2")
    table = read(path)
    assert table.columns == (Column("age", whole=True), Column("size"))
    assert tables.summary(table.columns) == "1 numeric (size), 1 whole (age)"
    drawn = np.array([[38.5, 1.125], [-0.4, 3.0], [39.51, -2.0], [1e17, 0.5], [np.nan, np.nan]])
    text = write(table.columns, drawn)
    assert text == ("age,size\n38,1.125\n0,3\n40,-2\n100000000000000000,0.5\n,\n")
    assert read(path, {"age": "numeric"}).columns[0] == Column("age")
    told = as_config(table.columns)
    assert told == {"age": "whole", "size": "numeric"}
    assert from_config(json.loads(json.dumps(told))) == table.columns


def test_whole_is_said_of_numbers_that_are(csv_file):
    path = csv_file("a,b,c\n1,1.5,x\n1,2,y\n1,3,x")
    assert read(path, {"a": "whole"}).columns[0] == Column("a", whole=True)
    with pytest.raises(InputError, match=r"'b' of .* is to be whole, and holds '1\.5'.*numeric"):
        read(path, {"b": "whole"})
    with pytest.raises(InputError, match=r"'c' of .* holds 'x', which is not a number"):
        read(path, {"c": "whole"})
    with pytest.raises(InputError, match="'a' are not told"):
        from_config({"a": "binary"})


def test_a_run_writes_its_whole_columns_whole(csv_file):
    rows = people(80)
    rows[:, 0] = rows[:, 0].round()
    data = load_data(csv_file(write(SCHEMA, rows)))
    assert data.columns[0] == Column("age", whole=True)
    run = pyrovae.fit(build_vae(data, latent_dim=2, hidden=8), data, epochs=1, progress=False)
    for picture in (run.sample(4), run.sample(4, draw=True), run.reconstruct(3)):
        lines = write(picture.columns, picture.x.flatten(0, 1).numpy()).splitlines()[1:]
        ages = [line.split(",")[0] for line in lines]
        assert all(age.isdigit() or age.startswith("-") for age in ages)
    # What is trained on and measured is a number like any other.
    numeric = load_data(data.source, columns={"age": "numeric"})
    assert torch.equal(numeric.train.head(64).x, data.train.head(64).x)


# ── Digits ──


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([1_700_000_000 + i for i in range(300)], r"from 1700000000(\.0)? to 1700000299"),
        (
            [17 * 10**15 + 7 * i for i in range(300)],
            r"from (17000000000000000|1\.7e\+16) to",
        ),
        ([-(1e6 + i / 100) for i in range(300)], r"from -1000002\.99 to -1000000\.0"),
        ([1e6 + 1000 * i + 0.1 for i in range(300)], None),
        ([16_000_000 + i for i in range(100)], None),
        ([0.5 + i for i in range(300)], None),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_numbers_that_float32_cannot_tell_apart_are_refused(
    tmp_path, csv_file, numbers, words, kind
):
    x = np.stack([np.arange(len(numbers)), numbers], 1)
    if kind == "csv":
        rows = "\n".join(f"{i},{n!r}" for i, n in enumerate(numbers))
        path, name = csv_file(f"i,a\n{rows}\n3,\n"), "column 'a' of"
    else:
        path, name = tmp_path / "t.npy", "column 1 of"
        np.save(path, x)
    if words is None:
        assert load_data(path).preprocessing.scale[1] > 1
        return
    with pytest.raises(InputError, match=rf"{name} .*t\.{kind} .*{words}.*float32 loses.*origin"):
        load_data(path)


def test_integers_beyond_float64_and_images_are_looked_at_too():
    integers = 2**60 + np.arange(40)[:, None].repeat(2, 1)
    for x in (integers, integers.astype(np.uint64), -integers):
        with pytest.raises(InputError, match="column 0 of array"):
            load_data(x)
    with pytest.raises(InputError, match="array array has values from 10000000"):
        load_data(1e7 + np.random.default_rng(0).random((40, 4, 4)))


def test_constants_are_no_loss():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:, 1] = 0.1
    x[::2, 2], x[1::2, 2] = 0.3, 0.1 + 0.2
    x[::4, 1] = np.nan
    assert load_data(x, missing=True).x_shape == (3,)


def test_other_data_may_lie_close_together(csv_file, quick):
    path = csv_file("\n".join(["a,b", *(f"{1e6 + 1000 * i + 0.1},{i}" for i in range(60))]))
    cli.main(["train", str(path), *quick])
    others = csv_file("a,b\n1000000.1,1\n1000000.2,2\n", "others.csv")
    assert len(pyrovae.load("run").on(others).splits["test"]) == 2


def test_the_end_of_a_name_may_be_in_capitals(csv_file):
    rows = "\n".join(f"{i},{'xy'[i % 2]}" for i in range(30))
    assert load_data(csv_file(f"a,b\n{rows}", "T.CSV")).columns == (
        Column("a", whole=True),
        Column("b", ("x", "y")),
    )


def test_quotes_blank_lines_and_other_ends_of_lines(csv_file):
    table = read(csv_file('a,"b, c"\r\n\r\n"x, ""y""",1\r\n"two\nlines",2\r\nz,3\r\n\r\n'))
    first = Column("a", ("two\nlines", 'x, "y"', "z"))
    assert table.columns == (first, Column("b, c", whole=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", r"Line 3 of .*t\.csv has 1 entries, and the first line has 2"),
        ("a,b\n1,2,3\n", "Line 2 of .* has 3 entries"),
        ("a,b,a\n1,2,3\n", "Two columns of .* are named 'a'"),
        ("a,a\n1,2\n", "Two columns of .* are named 'a'"),
        ("39,clerk\n40,nurse\n", "'39' for column 1.*line of names"),
        (",a\n0,5\n1,6", "'' for column 1.*row numbers"),
        ('a,b\n"x,2\n3,4', "Line 3 of .*cannot be read"),
        ("a,b\n1,\0\n", "no text"),
        ("a;b\n1,5;x\n2,25;y\n3,5;z", "'a'.*decimal commas, such as '1,5'"),
        ("a,b\n1,x\n2,y\ninf,x", "'a'.*'inf', which is not a number of float32"),
        ("a,b\n1,x\n2,y\n1e39,x", "'a'.*'1e39'"),
    ],
)
def test_what_is_no_table_is_refused(csv_file, text, words):
    with pytest.raises(InputError, match=words) as found:
        load_data(csv_file(text))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"c": "numeric"}, "no column 'c'.*It has a, b"),
        ({"a": "number"}, "'a' is to be 'number'.*numeric, whole, binary"),
        ({"a": ["x"]}, "'a' is to be"),
        ({"a": ["x", "x"]}, "'a' is to be"),
        ({"a": 3}, "'a' is to be 3"),
        ({"b": "numeric"}, "'b'.*'x', which is not a number"),
        ({"b": ["x", "y"]}, "'b'.*'z', which is not one of its categories"),
        ({"a": "binary"}, "'a'.*binary, and has 3"),
        ({"c": "ignore", "a": "ignore"}, "no column 'c'"),
        ((Column("c"),), "no column 'c'"),
        (["age"], "no mapping"),
    ],
)
def test_what_cannot_be_so_is_refused(csv_file, asked, words):
    with pytest.raises(InputError, match=words):
        read(csv_file("a,b\n1,x\n2,y\n3,z"), asked)


@pytest.mark.parametrize("kind", ["numeric", "binary", "categorical"])
def test_an_empty_column_that_is_asked_for_is_named(csv_file, kind):
    with pytest.raises(InputError, match=f"'a' .* is to be {kind}, and has 0 different values"):
        read(csv_file("a,b\n,1\n?,2"), {"a": kind})


@pytest.mark.parametrize("content", ["", "{", "[1]", '"numeric"', "[" * 100_000])
def test_a_damaged_schema_is_named(csv_file, tmp_path, content):
    schema = put(content, tmp_path, "schema.json")
    with pytest.raises(InputError, match=r"schema\.json|mapping"):
        read(csv_file("a,b\n1,x\n2,y"), schema)
    with pytest.raises(InputError, match=r"no file .*gone\.json.*path"):
        read(csv_file("a,b\n1,x\n2,y"), tmp_path / "gone.json")


def test_columns_are_for_tables_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((30, 2)))
    for source in (tmp_path / "a.npy", "digits", np.zeros((30, 2)), tmp_path):
        with pytest.raises(InputError, match=r"no table|no images"):
            load_data(source, columns={"a": "numeric"})
    with pytest.raises(InputError, match=r"no .*file"):
        load_data(tmp_path / "gone.csv")


# ── There and back ──


def test_rows_are_written_as_they_were_read(csv_file):
    rows = people(lacking=0.2)
    text = write(SCHEMA, rows)
    assert text.splitlines()[0] == "age,sex,job"
    table = read(csv_file(text))
    assert table.columns == SCHEMA
    np.testing.assert_array_equal(table.rows, rows)


def test_codes_between_two_become_the_nearest():
    texts = [SCHEMA[2].text(code) for code in (-0.4, 0.4, 0.6, 1.9, 7.0, math.nan)]
    assert texts == ["clerk", "clerk", "farmer", "nurse", "nurse", ""]
    numbers = (1234567.0, 1700000000.0, 1700000128.0, 0.1, 3.0, -2e-8, 1e30)
    texts = ["1234567", "1700000000", "1700000100", "0.1", "3", "-2e-08", "1e+30"]
    assert [Column("size").text(number) for number in numbers] == texts
    assert [np.float32(text) for text in texts] == [np.float32(number) for number in numbers]


def test_columns_survive_a_configuration():
    config = json.loads(json.dumps(as_config(SCHEMA)))
    assert config == {"age": "numeric", "sex": ["f", "m"], "job": list(JOBS)}
    assert from_config(config) == SCHEMA
    with pytest.raises(InputError, match="'age' are not told"):
        from_config({"age": "categorical"})


def test_a_line_names_the_columns_of_each_kind():
    assert tables.summary(SCHEMA) == "1 numeric (age), 1 binary (sex), 1 categorical (job: 3)"
    many = [Column(str(i)) for i in range(1012)]
    assert tables.summary(many).endswith("10, 11 and 1,000 more)")


# ── Data and programs ──


@pytest.fixture
def table(tmp_path):
    return put(write(SCHEMA, people(lacking=0.1)), tmp_path, "people.csv")


def test_numbers_are_standardised_and_codes_are_not(table):
    data = load_data(table)
    assert (data.values, data.columns, data.train.missing) == ("columns", SCHEMA, True)
    assert isinstance(data.preprocessing, Standardize)
    x = data.train.head(48).x
    assert x[:, 0].nanmean().abs() < 1e-5
    assert set(x[:, 2][~x[:, 2].isnan()].tolist()) == {0.0, 1.0, 2.0}
    raw = torch.cat([s.raw(range(len(s))).x for s in data.splits.values()])
    assert torch.equal(raw.isnan().sum(0), torch.from_numpy(people(lacking=0.1)).isnan().sum(0))
    with pytest.raises(InputError, match="not binarised"):
        load_data(table, binarize="static")


def test_the_default_program_is_of_the_columns(table):
    vae = build_vae(load_data(table), latent_dim=2, hidden=8)
    assert vae.decoder.columns == vae.encoder.net.columns == (0, 2, 3)
    assert vae.decoder.min_scale == 1e-2


@pytest.mark.parametrize(
    ("decoder", "lacking", "words"),
    [
        ("gaussian", 0.0, "'sex' is binary, and the gaussian"),
        ("bernoulli", 0.0, "'age' is numeric, and the bernoulli"),
    ],
)
def test_a_likelihood_that_cannot_take_a_column_is_refused(tmp_path, decoder, lacking, words):
    data = load_data(put(write(SCHEMA, people(lacking=lacking)), tmp_path))
    if decoder == "bernoulli":
        words = words.replace("'age' is numeric", "'job' is categorical")
        data = load_data(tmp_path / "t.csv", columns=SCHEMA[1:])
    with pytest.raises(InputError, match=words):
        build_vae(data, decoder=Choice(decoder))


def test_likelihoods_of_other_values_take_the_columns_that_they_can(tmp_path):
    put(write(SCHEMA, people()), tmp_path)
    numbers, bits = (load_data(tmp_path / "t.csv", columns=[c]) for c in SCHEMA[:2])
    for data, name in ((numbers, "gaussian"), (bits, "bernoulli")):
        vae = build_vae(data, decoder=Choice(name), latent_dim=2, hidden=8)
        run = pyrovae.fit(vae, data, epochs=1, progress=False)
        assert math.isfinite(run.metrics[0]["valid_elbo"])


def test_pseudo_inputs_of_categories_are_refused(table):
    with pytest.raises(InputError, match=r"VampPrior learns inputs.*gaussian-mixture"):
        build_vae(load_data(table), prior=Choice("vamp", {"components": 3}))


def test_a_tabular_decoder_needs_a_table():
    with pytest.raises(InputError, match="is of tables, and the data are none"):
        build_vae(load_data(people()[:, :1]), decoder=Choice("tabular"))


# ── The command line ──


@pytest.fixture
def quick(tmp_path, monkeypatch):
    from pyrovae.cli import training

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pyrovae"])
    monkeypatch.setattr(training, "FINAL_SAMPLES", 10)
    return ["--epochs", "2", "--hidden", "8", "--latent-dim", "2", "--run-dir", "run"]


def test_a_table_is_trained_measured_sampled_and_gone_on_with(table, quick, capsys):
    Path("schema.json").write_text('{"sex": ["m", "f"]}')
    cli.main(["train", "people.csv", "--columns", "schema.json", *quick])
    said = capsys.readouterr().out
    assert "people.csv, 3, a table, standardised" in said
    assert "columns  1 numeric (age), 1 binary (sex), 1 categorical (job: 3)" in said
    assert "tabular decoder" in said

    run = pyrovae.load("run")
    assert run.config["data"]["columns"]["sex"] == ["m", "f"]
    assert len(run.splits["test"]) == 6

    cli.main(["sample", "run", "--count", "7", "--draw"])
    assert "run/sample/sample.csv" in capsys.readouterr().out
    drawn = read(Path("run/sample/sample.csv"), SCHEMA)
    assert drawn.rows.shape == (7, 3)
    assert not np.isnan(drawn.rows).any()
    x = np.load("run/sample/sample.npz")["x"].reshape(-1, 3)[:7]
    np.testing.assert_allclose(drawn.rows[:, 0], x[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(drawn.rows[:, 1], 1 - x[:, 1])
    assert np.abs(drawn.rows[:, 0] - 40).max() < 60

    Path("others.csv").write_text("job,age,id\nnurse,?,7\nclerk,33,8\n")
    Path("others2.csv").write_text("job,age,sex,id\nnurse,?,f,7\nclerk,33,m,8\n")
    with pytest.raises(InputError, match=r"others\.csv has no column 'sex'"):
        run.on("others.csv")
    cli.main(["encode", "run", "--data", "others2.csv"])
    assert np.load("run/encode/others2.npz")["z"].shape == (2, 2)
    cli.main(["reconstruct", "run", "--count", "2", "--data", "others2.csv"])
    shown = read(Path("run/reconstruct/reconstruct.csv"), SCHEMA).rows
    np.testing.assert_array_equal(shown[:2], [[np.nan, 0, 2], [33, 1, 0]])
    lines = Path("run/reconstruct/reconstruct.csv").read_text().splitlines()
    starts = ["shown,example,age", "original,0,", "original,1,33", "reconstruction,0,"]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False))
    cli.main(["traverse", "run", "--dims", "1", "0"])
    lines = Path("run/traverse/traverse.csv").read_text().splitlines()
    assert lines[0] == "site,dimension,value,age,sex,job"
    assert [line.rsplit(",", 3)[0] for line in (lines[1], lines[5], lines[9], lines[10])] == [
        "z,1,-2.5",
        "z,1,0.0",
        "z,1,2.5",
        "z,0,-2.5",
    ]
    for words in (["evaluate", "run", "--num-samples", "5"], ["resume", "run", "--epochs", "3"]):
        cli.main(words)
    Path("others2.csv").write_text("job,age,sex\nnurse,?,f\npilot,33,m\n")
    with pytest.raises(InputError, match=r"'job' .* holds 'pilot'"):
        run.on("others2.csv")


def test_another_schema_is_another_run(table, quick, capsys):
    Path("schema.json").write_text('{"sex": ["m", "f"]}')
    cli.main(["train", "people.csv", "--columns", "schema.json", *quick])
    Path("schema.json").write_text('{"sex": ["f", "m"]}')
    with pytest.raises(SystemExit):
        cli.main(["resume", "run", "--epochs", "3"])
    assert "data.columns.sex" in capsys.readouterr().err


def test_a_run_goes_on_without_the_file_of_its_schema(table, quick):
    Path("schema.json").write_text('{"sex": ["m", "f"]}')
    cli.main(["train", "people.csv", "--columns", "schema.json", *quick])
    Path("schema.json").unlink()
    cli.main(["resume", "run", "--epochs", "3"])
    assert len(pyrovae.load("run").metrics) == 3


def test_missing_entries_of_other_data_are_no_numbers_for_a_density(tmp_path, quick):
    put(write(SCHEMA[:1], people()[:, :1]), tmp_path, "ages.csv")
    cli.main(["train", "ages.csv", "--decoder", "gaussian", *quick])
    put("age,b\n40,1\n?,2\n", tmp_path, "others.csv")
    with pytest.raises(InputError, match="example 1"):
        pyrovae.load("run").on("others.csv")


def test_only_tables_are_written_as_text(quick, capsys):
    cli.main(["train", *quick])
    assert not (Path("run") / "sample.csv").exists()
    cli.main(["sample", "run", "--count", "3"])
    assert ".csv" not in capsys.readouterr().out.partition("sample")[2]


def test_counts_in_a_table_take_a_likelihood_of_counts(tmp_path, quick, capsys):
    x = np.random.default_rng(0).poisson(3, (60, 2))
    put(write([Column("a"), Column("b")], x.astype(float)), tmp_path, "c.csv")
    cli.main(["train", "c.csv", "--decoder", "poisson", *quick])
    assert "a table, as they are" in capsys.readouterr().out
