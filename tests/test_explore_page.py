"""The page of `pyrovae explore`, in a browser."""

import base64
import io
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from programs_for_tests import binary, small_vae
from test_explore import Hierarchy, grey, png, run_of, table_run

import pyrovae
from pyrovae.explore import Server, Session, server

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

EVIL = """<img src=x onerror="document.title='taken'">손글씨"""


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


# A session answers one question at a time: tests ask it themselves before a page does, or once
# that is settled.
@contextmanager
def serving(session):
    with Server(session) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def digits():
    data = pyrovae.load_data("digits")
    run = pyrovae.fit(small_vae(data.x_shape, latent_dim=20), data, epochs=30, progress=False)
    run.config["data"]["name"] = EVIL
    with serving(Session(run)) as served:
        yield served


@pytest.fixture(scope="module")
def colours():
    images = torch.rand(40, 3, 6, 9)
    vae = small_vae((3, 6, 9))
    vae.decoder = pyrovae.GaussianDecoder(pyrovae.MLP((2,), (3, 6, 9)))
    with serving(Session(run_of(vae, images))) as served:
        yield served


@pytest.fixture(scope="module")
def vectors():
    with serving(Session(run_of(small_vae(), binary(100)))) as served:
        yield served


@pytest.fixture(scope="module")
def hierarchy():
    with serving(Session(run_of(Hierarchy(), torch.randn(40, 5)))) as served:
        yield served


@pytest.fixture(scope="module")
def table():
    with serving(Session(table_run())) as served:
        yield served


@contextmanager
def opened(browser, served, *, width=1280, refused=False, **how):
    """A page on which nothing has gone wrong, but for requests that are meant to be refused."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **how)
    page = context.new_page()
    page.set_default_timeout(15_000)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type != "log" else None)
    page.goto(served.url)
    settled(page)
    yield page
    if not refused:
        assert page.locator("#error").is_hidden()
    context.close()
    assert [text for text in wrong if not (refused and "Failed to load resource" in text)] == []


def settled(page):
    """Waits until the page has an answer to all that it asked."""
    until(page, "find('stage').ariaBusy !== 'true' && !asking && picture !== null")


def until(page, condition, arg=None):
    """Waits for a condition; its policy lets the page evaluate none by itself."""
    for _ in range(300):
        if page.evaluate(condition, arg):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} did not come true")


def shown(page, name="decoded"):
    return page.locator(f"#{name} img").get_attribute("src")


def image_of(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def latents(page):
    return page.evaluate("structuredClone(z)")


def decoded(served, page):
    return served.session.decode(latents(page))["picture"]["image"]


def test_it_opens_with_an_example_its_latents_and_its_numbers(browser, digits):
    with opened(browser, digits) as page:
        assert page.locator("h1").inner_text() == EVIL
        assert page.title() == f"{EVIL} · pyrovae explore"
        expected = digits.session.encode_example(0)
        assert shown(page) == expected["picture"]["image"]
        assert shown(page, "given") == expected["shown"]["image"]
        assert latents(page) == expected["latents"]
        page.wait_for_selector("#numbers dd")
        numbers = digits.session.measure(expected["input"])
        texts = [text.replace("−", "-") for text in page.locator("#numbers dd").all_inner_texts()]
        keys = ("elbo", "log_likelihood", "kl", "log_evidence")
        assert texts == [f"{numbers[key]:.2f}" for key in keys]
        assert "500 importance samples" in page.locator("#about").inner_text()


def test_sliders_stand_in_the_order_of_the_kl_and_collapsed_ones_are_folded_away(browser, digits):
    (site,) = digits.session.describe()["sites"]
    assert 0 < site["active"] < 20
    with opened(browser, digits) as page:
        names = page.locator("#sliders > .slider span:first-child").all_inner_texts()[1:]
        first = min(site["active"], 12)
        assert names == [f"z[{dim}]" for dim in site["order"][:first]]
        folds = page.locator("#sliders details")
        last = folds.last
        count = 20 - site["active"]
        assert last.locator("summary").inner_text().startswith(f"{count} collapsed")
        assert last.locator("input").count() == 0
        last.locator("summary").click()
        last.locator("input").first.wait_for()
        assert last.locator("input").count() == count


def test_moving_a_slider_changes_the_picture_and_back_it_is_what_it_was(browser, digits):
    with opened(browser, digits) as page:
        before, z = shown(page), latents(page)
        slider = page.locator("#sliders input").first
        slider.focus()
        for _ in range(12):
            slider.press("ArrowRight")
        settled(page)
        assert shown(page) != before
        assert shown(page) == decoded(digits, page)
        dim = digits.session.describe()["sites"][0]["order"][0]
        assert latents(page)["z"][dim] == pytest.approx(z["z"][dim] + 12 * 6 / 50, abs=1e-6)
        slider.fill("-2.5")
        settled(page)
        assert latents(page)["z"][dim] == -2.5
        assert page.locator("#sliders output").first.inner_text() == "−2.50"
        assert shown(page) == decoded(digits, page)
        page.locator("#back").click()
        settled(page)
        assert (shown(page), latents(page)) == (before, z)
        page.locator("#middle").click()
        settled(page)
        assert latents(page)["z"] == digits.session.describe()["sites"][0]["start"]
        assert shown(page) == decoded(digits, page)


def test_positions_that_a_slider_passes_are_not_all_asked_for(browser, digits, monkeypatch):
    asked = []

    def slow(session, latents, label=None):
        asked.append(latents)
        time.sleep(0.1)
        return session.decode(latents, label)

    with opened(browser, digits) as page:
        monkeypatch.setitem(server.QUESTIONS, "decode", slow)
        page.evaluate("for (let i = 0; i <= 40; ++i) move(0, i / 20)")
        settled(page)
        assert len(asked) == 2
        assert asked[-1]["z"][0] == 2
        assert shown(page) == decoded(digits, page)


def test_a_late_answer_does_not_replace_a_newer_starting_point(browser, digits, monkeypatch):
    def slow(session, latents, label=None):
        time.sleep(0.3)
        return session.decode(latents, label)

    with opened(browser, digits) as page:
        monkeypatch.setitem(server.QUESTIONS, "decode", slow)
        page.evaluate("move(0, 3)")
        page.locator("#examples button").nth(7).click()
        settled(page)
        expected = digits.session.encode_example(7)
        assert shown(page) == expected["picture"]["image"]
        assert latents(page) == expected["latents"]


def test_an_input_that_is_late_does_not_replace_what_was_chosen_since(
    browser, digits, monkeypatch
):
    def slow(session, index):
        time.sleep(0.5)
        return session.encode_example(index)

    with opened(browser, digits) as page:
        page.get_by_text("Prior", exact=True).click()
        page.locator("#draws button").nth(23).wait_for()
        settled(page)
        monkeypatch.setitem(server.QUESTIONS, "example", slow)
        page.evaluate("find('examples').children[7].click(); find('draws').children[2].click()")
        settled(page)
        assert shown(page) == page.locator("#draws img").nth(2).get_attribute("src")
        assert page.locator("#given").is_hidden()


def test_the_pad_moves_two_latents_by_mouse_and_by_keys(browser, digits):
    order = digits.session.describe()["sites"][0]["order"]
    with opened(browser, digits) as page:
        page.locator("#across").select_option(str(order[1]))
        page.locator("#up").select_option(str(order[0]))
        pad = page.locator("#pad")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        before = shown(page)
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"], steps=5)
        page.mouse.up()
        settled(page)
        z = latents(page)["z"]
        assert z[order[1]] == pytest.approx(0.25 * 6.72, abs=0.05)
        assert z[order[0]] == pytest.approx(0.25 * 6.72, abs=0.05)
        assert shown(page) != before
        assert shown(page) == decoded(digits, page)
        page.mouse.move(box["x"], box["y"])
        assert latents(page)["z"] == z
        pad.press("ArrowLeft")
        pad.press("ArrowDown")
        settled(page)
        moved = latents(page)["z"]
        assert moved[order[1]] == pytest.approx(z[order[1]] - 6.72 / 50, abs=1e-3)
        assert moved[order[0]] == pytest.approx(z[order[0]] - 6.72 / 50, abs=1e-3)
        assert pad.get_attribute("aria-label").startswith(f"Plane of z[{order[1]}]")
        # Its dots are there: more colours than those of the axes and of the ring.
        until(page, "points !== null")
        colours = page.evaluate(
            "new Set(new Uint32Array(find('pad').getContext('2d')"
            ".getImageData(0, 0, pad.width, pad.height).data.buffer)).size"
        )
        assert colours > 100


def drop(page, content, name="사진.png"):
    # Else the browser would leave the page for the file.
    left = page.evaluate(
        """([text, name]) => {
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name));
          const given = { bubbles: true, cancelable: true, dataTransfer };
          return ["dragover", "drop"].map(
            (kind) => document.body.dispatchEvent(new DragEvent(kind, given)));
        }""",
        [base64.b64encode(content).decode(), name],
    )
    assert left == [False, False]
    settled(page)


def test_a_file_that_is_dropped_or_chosen_is_encoded(browser, digits):
    raw = digits.session.run.measured.raw([9]).x[0, 0]
    content = png(np.kron(grey(raw), np.ones((5, 5), np.uint8)))
    expected = digits.session.encode_file(content)
    with opened(browser, digits) as page:
        drop(page, content)
        assert shown(page, "given") == expected["shown"]["image"]
        assert shown(page) == expected["picture"]["image"]
        assert latents(page) == expected["latents"]
        assert page.locator("#numbers dd").count() == 4
        page.locator("#examples button").nth(2).click()
        settled(page)
        page.get_by_text("File", exact=True).click()
        page.locator("#file").set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": content}
        )
        until(
            page,
            "u => find('given').querySelector('img').src === u",
            arg=expected["shown"]["image"],
        )
        settled(page)
        assert latents(page) == expected["latents"]


def test_what_is_wrong_with_a_file_is_said_and_forgotten(browser, digits):
    with opened(browser, digits, refused=True) as page:
        before = shown(page)
        drop(page, b"<svg onload=alert(1)>", "<b>.svg")
        error = page.locator("#error")
        assert error.is_visible()
        assert "The file cannot be read: not an image." in error.inner_text()
        assert shown(page) == before
        error.get_by_text("Close").click()
        assert error.is_hidden()
        page.evaluate(
            """() => attempt(() => upload("file", new Blob([new Uint8Array(33 * 2 ** 20)])))"""
        )
        assert "33 MiB, more than the 32" in error.inner_text()
        page.locator("#examples button").nth(3).click()
        until(page, "u => document.querySelector('#decoded img').src !== u", arg=before)
        settled(page)
        assert error.is_hidden()


def test_a_server_that_has_ended_is_said(browser, vectors):
    with opened(browser, vectors, refused=True) as page:
        page.route("**/decode", lambda route: route.abort())
        page.locator("#sliders input").first.press("ArrowRight")
        until(page, "!find('error').hidden")
        assert "Start pyrovae explore again" in page.locator("#error").inner_text()
        page.unroute("**/decode")
        page.locator("#sliders input").first.press("ArrowRight")
        until(page, "find('error').hidden")


def test_a_drawing_is_encoded_when_the_mouse_lets_go(browser, digits):
    with opened(browser, digits) as page:
        page.get_by_text("Draw", exact=True).click()
        before = shown(page, "given")
        canvas = page.locator("#canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 30, box["y"] + 120, steps=6)
        assert shown(page, "given") == before
        page.mouse.up()
        until(page, "u => find('given').querySelector('img').src !== u", arg=before)
        settled(page)
        # A line in a corner stands upright in the middle, as the data do.
        stroke = image_of(shown(page, "given")) > 0
        assert stroke.any(1).sum() >= 7
        assert 2 <= np.flatnonzero(stroke.any(0)).mean() <= 5
        assert shown(page) == decoded(digits, page)
        assert page.locator("#numbers dd").count() == 4
        drawn = image_of(page.evaluate("find('canvas').toDataURL()"))[..., 0]
        assert 0.02 < (drawn > 0).mean() < 0.3
        page.locator("#clear").click()
        assert image_of(page.evaluate("find('canvas').toDataURL()"))[..., 0].max() == 0


def test_a_finger_draws_in_colour(browser, colours):
    with opened(browser, colours, width=390, has_touch=True, is_mobile=True) as page:
        page.get_by_text("Draw", exact=True).tap()
        page.locator("#ink").fill("#ff0000")
        page.locator("#brush").fill("60")
        canvas = page.locator("#canvas")
        size = canvas.evaluate("c => [c.width, c.height]")
        assert size == [280, 187]
        before = shown(page, "given")
        canvas.tap()
        until(page, "u => find('given').querySelector('img').src !== u", arg=before)
        settled(page)
        given = image_of(shown(page, "given"))
        assert given.shape == (6, 9, 3)
        assert (given[0, 0] > 250).all()
        middle = given[3, 4].astype(int)
        assert middle[0] > 250
        assert middle[1] < 200
        page.locator("#fill").tap()
        until(page, "u => find('given').querySelector('img').src !== u", arg=shown(page, "given"))
        settled(page)
        filled = image_of(shown(page, "given")).reshape(-1, 3)
        assert (filled[:, 0] > 250).all()
        assert (filled[:, 1:] < 5).all()


def test_between_two_inputs_there_are_frames_and_a_line_to_move_along(browser, digits):
    with opened(browser, digits) as page:
        assert page.locator("#share").is_disabled()
        first = shown(page)
        page.get_by_text("Keep as A").click()
        page.locator("#examples button").nth(5).click()
        until(page, "u => document.querySelector('#decoded img').src !== u", arg=first)
        settled(page)
        last = shown(page)
        page.get_by_text("Keep as B").click()
        page.locator("#frames button").nth(8).wait_for()
        frames = [image.get_attribute("src") for image in page.locator("#frames img").all()]
        ends = [digits.session.encode_example(index)["latents"] for index in (0, 5)]
        found = digits.session.interpolate(*ends, 9)["pictures"]
        assert frames == [each["image"] for each in found]
        assert (frames[0], frames[-1]) == (first, last)
        page.locator("#share").fill("0.5")
        settled(page)
        assert shown(page) == frames[4]
        page.locator("#frames button").nth(2).click()
        settled(page)
        assert shown(page) == frames[2]
        assert float(page.locator("#share").input_value()) == 0.25


def test_draws_from_the_prior_are_starting_points_without_an_input(browser, digits):
    with opened(browser, digits) as page:
        page.get_by_text("Prior", exact=True).click()
        page.locator("#draws button").nth(23).wait_for()
        thumbnail = page.locator("#draws img").nth(4).get_attribute("src")
        page.locator("#draws button").nth(4).click()
        assert shown(page) == thumbnail == decoded(digits, page)
        assert page.locator("#given").is_hidden()
        assert page.locator("#numbers").is_hidden()
        page.locator("#again").click()
        until(page, "u => find('draws').querySelectorAll('img')[4].src !== u", arg=thumbnail)
        settled(page)


def test_examples_are_turned_over(browser, digits):
    with opened(browser, digits) as page:
        assert page.locator("#earlier").is_disabled()
        for _ in range(7):
            start = page.evaluate("start")
            page.locator("#later").click()
            until(page, "s => start > s", arg=start)
        assert page.locator("#later").is_disabled()
        assert page.locator("#where").inner_text() == "168 to 179 of 180"
        page.locator("#examples button").nth(11).click()
        settled(page)
        assert latents(page) == digits.session.encode_example(179)["latents"]


def test_vectors_are_charts_and_are_given_as_numbers(browser, vectors):
    expected = vectors.session.encode_numbers([1, 0, 1, 0, 1, 1])
    with opened(browser, vectors) as page:
        assert page.locator("#decoded .bar").count() == 6
        assert page.locator("#decoded .dot").count() == 6
        page.get_by_text("Numbers", exact=True).click()
        page.locator("#values").fill("1, 0, 1, 0, 1, 1")
        page.locator("#take").click()
        until(page, "v => given.values.join() === v", arg="1,0,1,0,1,1")
        settled(page)
        assert latents(page) == expected["latents"]
        before = page.locator("#decoded .bar").first.get_attribute("height")
        page.locator("#sliders input").first.fill("3")
        settled(page)
        assert page.locator("#decoded .bar").first.get_attribute("height") != before
        title = page.locator("#decoded .bar title").first.text_content()
        value = vectors.session.decode(latents(page))["picture"]["values"][0]
        assert title == f"0: {value:.3g}, given 1"


def test_numbers_that_are_none_are_said(browser, vectors):
    with opened(browser, vectors, refused=True) as page:
        page.get_by_text("Numbers", exact=True).click()
        for text, words in (("1, 2", "Give 6"), ("1, a, 1, 1, 1, 1", "Entry 1 is no number")):
            page.locator("#values").fill(text)
            page.locator("#take").click()
            until(page, "w => find('error').innerText.includes(w)", arg=words)


def cells(page, place):
    """A column of what is decoded: of its rows the texts there."""
    return page.locator(f"#decoded tbody tr > :nth-child({place})").all_inner_texts()


def test_a_row_of_a_table_is_a_table_of_names_and_words(browser, table):
    with opened(browser, table) as page:
        expected = table.session.encode_example(0)
        assert cells(page, 1) == ["height", "age", "smokes", "job"]
        assert cells(page, 3) == expected["picture"]["texts"]
        assert cells(page, 4) == expected["shown"]["texts"]
        # A number, and which of two, have a place on a line; which of three has none.
        assert page.locator("#decoded tbody circle.key").count() == 3
        assert page.locator("#decoded tbody circle.dot").count() == 3
        before = page.locator("#decoded circle.key").first.get_attribute("cx")
        slider = page.locator("#sliders input").first
        slider.fill("2.5")
        settled(page)
        found = table.session.decode(latents(page))["picture"]
        assert cells(page, 3) == found["texts"]
        assert cells(page, 4) == expected["shown"]["texts"]
        assert page.locator("#decoded circle.key").first.get_attribute("cx") != before
        page.locator("#examples button").nth(3).click()
        settled(page)
        assert cells(page, 4)[0] == "–"
        tile = page.locator("#examples button").nth(5).inner_text().split("\n")
        (shown,) = table.session.thumbnails(5, 1)["pictures"]
        assert tile == shown["texts"]
        page.get_by_text("Prior", exact=True).click()
        page.locator("#draws button").first.click()
        assert page.locator("#decoded thead th").all_inner_texts() == ["column", "", "decoded"]


def test_a_row_of_ones_own_is_typed_and_chosen(browser, table):
    with opened(browser, table, refused=True) as page:
        page.get_by_text("Row", exact=True).click()
        assert page.locator("#values").is_hidden()
        names = [text.split("\n")[0] for text in page.locator("#fields label").all_inner_texts()]
        assert names == ["height", "age", "smokes", "job"]
        first = table.session.encode_example(0)["shown"]["values"]
        held = page.evaluate("fields.map((field) => field.value)")
        assert [float(text) for text in held] == pytest.approx(first, rel=1e-5)
        assert page.locator("#fields select").nth(1).locator("option").all_inner_texts() == [
            *("–", "a", "b", "c")
        ]
        page.locator("#fields input").nth(0).fill("171.5")
        page.locator("#fields input").nth(1).fill("")
        page.locator("#fields select").nth(0).select_option("yes")
        page.locator("#fields select").nth(1).select_option("b")
        page.locator("#take").click()
        until(page, "given.values[0] === 171.5")
        settled(page)
        expected = table.session.encode_numbers([171.5, None, 1, 1])
        assert latents(page) == expected["latents"]
        assert cells(page, 4) == ["171.5", "–", "yes", "b"]
        page.locator("#fields input").nth(0).fill("tall")
        page.locator("#take").click()
        until(page, "find('error').innerText.includes('Entry of height is no number')")


def test_a_site_of_a_hierarchy_is_chosen_and_those_below_follow(browser, hierarchy):
    with opened(browser, hierarchy) as page:
        assert page.locator("#site").input_value() == "top"
        assert page.locator("#follow").is_checked()
        heights = "[...document.querySelectorAll('#decoded .bar')].map((b) => b.outerHTML)"
        before = page.evaluate(heights)
        page.locator("#sliders input").first.fill("3")
        settled(page)
        moved = page.evaluate(heights)
        assert moved != before
        page.locator("#back").click()
        settled(page)
        assert page.evaluate(heights) == before
        page.locator("#sliders input").first.fill("3")
        settled(page)
        assert page.evaluate(heights) == moved
        page.locator("#follow").uncheck()
        settled(page)
        held = page.evaluate(heights)
        assert held != moved
        assert held == before
        page.locator("#site").select_option("z")
        assert page.locator("#whetherfollow").is_hidden()
        assert page.locator("#sliders input").count() == 3
        page.locator("#sliders input").first.fill("3")
        settled(page)
        assert page.evaluate(heights) != held


@pytest.mark.parametrize("served", ["digits", "colours", "vectors", "hierarchy", "table"])
def test_nothing_overflows_a_phone(browser, served, request):
    with opened(browser, request.getfixturevalue(served), width=390) as page:
        page.get_by_text("Keep as A").click()
        page.get_by_text("Keep as B").click()
        page.locator("#frames button").nth(8).wait_for()
        for fold in page.locator("details summary").all():
            fold.click()
        for source in page.locator("#sources label").all():
            source.click()
            settled(page)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, source.inner_text()
        # What is decoded stays in sight while sliders are moved.
        page.locator("#back").scroll_into_view_if_needed()
        box = page.locator("#decoded").bounding_box()
        assert 0 <= box["y"]
        assert box["y"] + box["height"] < 400


@pytest.mark.parametrize("served", ["digits", "vectors", "table"])
def test_everything_is_reached_by_the_keyboard(browser, served, request):
    with opened(browser, request.getfixturevalue(served)) as page:
        page.locator("body").press("Tab")
        reached = set()
        for _ in range(120):
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.type"))
            page.keyboard.press("Tab")
        assert {"pad", "across", "up", "back", "middle", "range", "radio", "later"} <= reached
        page.locator("#sources input").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("[data-source=examples]").is_hidden()
