"""The page in a real browser: what it shows, what can be tried, and for whom it is usable."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect

from asyncembed import SparseTextEmbedding, TextCrossEncoder, TextEmbedding
from asyncembed.testing import fake_model
from tests.support.browsing import Watched, chromium, serving_in_thread
from tests.support.models import write_self_describing_model

# A browser takes seconds to start; on a busy machine many.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

HOSTILE = "<img src=x onerror=alert(1)>"

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that has a model with tokens, a reranker, and one with a name that is none of a friend's."""
    from asyncembed.server import create_app

    models: dict[str, Any] = {
        "small": TextEmbedding(write_self_describing_model(tmp_path_factory.mktemp("model")), workers=0),
        "ranks": TextCrossEncoder(fake_model("cross_encoder")),
        HOSTILE: SparseTextEmbedding(fake_model("sparse")),
    }
    with serving_in_thread(create_app(models)) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, once it shows something; whatever a test does, it may complain of nothing."""
    context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
    page = context.new_page()
    watched = Watched(page)
    page.goto(url)
    expect(page.get_by_role("status").first).to_have_text("ready")
    yield page
    assert [asked for asked in watched.asked if not asked.startswith((url, "data:"))] == []
    assert watched.complaints == []
    context.close()


def compute(url: str, *texts: str) -> Any:
    body = {"model": "small", "input": list(texts)}
    return httpx.post(f"{url}v1/embeddings", json=body, trust_env=False).raise_for_status().json()


def box(page: Page, name: str) -> Locator:
    return page.get_by_role("form", name=name)


def violations(page: Page) -> list[str]:
    """What axe finds, each rule with the elements."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]


# ---------------------------------------------------------------- what it shows


def test_models_are_shown_with_what_they_are(page: Page) -> None:
    small = page.get_by_role("article").filter(has=page.get_by_role("heading", name="small"))
    for term, fact in {"Dimensions": "8", "Limit": "64 tokens", "Precision": "fp32", "Runs on": "CPU"}.items():
        expect(small.get_by_role("term").filter(has_text=re.compile(f"^{term}$"))).to_have_count(1)
        expect(small.get_by_role("definition").filter(has_text=fact)).to_have_count(1)
    expect(page.get_by_role("article")).to_have_count(3)


def test_a_name_is_a_text_whatever_it_is(page: Page) -> None:
    expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()
    assert page.locator("img").count() == 0


def test_numbers_follow_what_the_server_does(page: Page, url: str) -> None:
    done = page.get_by_role("article").first.get_by_role("definition").filter(has_text="batch")
    expect(done).to_be_visible()
    before = int(done.inner_text().split()[0])
    compute(url, "one", "two", "three")
    expect(done).to_contain_text(re.compile(f"^{before + 3} inputs"))
    page.get_by_text("The same as a table").click()
    for what, highest in {"Requests served, a second": r"[0-9.]*[1-9]", "Inputs in a batch": "[1-3]"}.items():
        row = page.get_by_role("row").filter(has_text=what)
        expect(row.get_by_role("cell").nth(2)).to_have_text(re.compile(f"^{highest}"))
    chart = page.get_by_role("img", name=re.compile("^Requests, a second, the last two minutes"))
    expect(chart).to_be_visible()
    assert "M" in (chart.locator("path").last.get_attribute("d") or "")


def test_a_chart_tells_the_value_that_is_pointed_at(page: Page) -> None:
    expect(page.get_by_role("img", name=re.compile("^Tokens.*highest"))).to_be_visible()
    figure = page.get_by_role("figure").filter(has=page.get_by_role("heading", name="Tokens"))
    expect(figure).to_contain_text("2 min ago")
    figure.locator("svg").hover()
    expect(figure).not_to_contain_text("2 min ago")
    page.get_by_role("heading", level=1).hover()
    expect(figure).to_contain_text("2 min ago")


def test_it_can_be_paused_by_keyboard_and_goes_on(page: Page) -> None:
    watched = Watched(page)
    pause = page.get_by_role("button", name="Pause")
    pause.focus()
    page.keyboard.press("Space")
    expect(pause).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status").first).to_have_text("paused")
    page.keyboard.press("Space")
    expect(page.get_by_role("status").first).to_have_text("ready")
    assert watched.asked


def test_it_says_when_the_server_is_gone_and_when_it_is_back(browser: Browser, url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    state = page.get_by_role("status").first
    expect(state).to_have_text("ready")
    context.set_offline(True)
    expect(state).to_have_text("no answer; asking again")
    context.set_offline(False)
    expect(state).to_have_text("ready")
    context.close()


# ---------------------------------------------------------------- what can be tried


def test_similarities_are_those_of_the_vectors(page: Page, url: str) -> None:
    texts = ["the day", "the night", "two words"]
    similarity = box(page, "Similarity")
    similarity.get_by_label("Texts").fill("\n\n".join(texts))
    similarity.get_by_role("button").click()
    expect(similarity.get_by_role("status")).to_contain_text("3 texts, in")
    shown = [
        [float(value.replace("\N{MINUS SIGN}", "-")) for value in row.get_by_role("cell").all_inner_texts()]
        for row in similarity.get_by_role("row").all()[1:]
    ]
    vectors = np.array([one["embedding"] for one in compute(url, *texts)["data"]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(shown, vectors @ vectors.T, atol=0.0051)


def test_sparse_vectors_are_compared_as_well(page: Page) -> None:
    similarity = box(page, "Similarity")
    similarity.get_by_label("Model").select_option(label=HOSTILE)
    similarity.get_by_role("button").click()
    expect(similarity.get_by_role("cell")).to_have_count(16)


def test_documents_are_ranked_as_the_server_ranks_them(page: Page, url: str) -> None:
    documents = ["a day in June", "what a night", "two words", "the day"]
    rerank = box(page, "Reranking")
    rerank.get_by_label("Query").fill("the day")
    rerank.get_by_label("Documents").fill("\n".join(documents))
    rerank.get_by_label("Documents").press("Control+Enter")
    items = rerank.get_by_role("listitem")
    expect(items).to_have_count(4)
    body = {"model": "ranks", "query": "the day", "texts": documents}
    ranks = httpx.post(f"{url}rerank", json=body, trust_env=False).json()
    shown = [text.splitlines() for text in items.all_inner_texts()]
    assert [text for text, *_ in shown] == [documents[rank["index"]] for rank in ranks]
    assert [float(lines[-1]) for lines in shown] == pytest.approx([rank["score"] for rank in ranks], abs=1e-4)


def test_a_text_is_split_into_its_tokens_with_their_ids(page: Page, url: str) -> None:
    tokens = box(page, "Tokens")
    tokens.get_by_label("Text").fill("the day")
    tokens.get_by_role("button").click()
    expect(tokens.get_by_role("status")).to_contain_text("of at most 64")
    (found,) = httpx.post(f"{url}tokenize", json={"inputs": "the day"}, trust_env=False).json()
    shown = [text.split() for text in tokens.get_by_role("listitem").all_inner_texts()]
    assert shown == [[token["text"], str(token["id"])] for token in found]


def test_tokens_over_the_limit_are_told_apart(page: Page) -> None:
    tokens = box(page, "Tokens")
    tokens.get_by_label("Text").fill("the " * 66)
    tokens.get_by_role("button").click()
    expect(tokens.get_by_role("status")).to_contain_text("68 tokens, of which 4 are over the limit")
    assert tokens.locator(".cut").count() == 4


def test_what_is_refused_is_said_in_the_servers_words(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.goto(url)
    tokens = box(page, "Tokens")
    tokens.get_by_label("Model").select_option(label="ranks")
    tokens.get_by_role("button").click()
    expect(tokens.get_by_role("status")).to_contain_text("has no tokens that could be told")
    similarity = box(page, "Similarity")
    similarity.get_by_label("Texts").fill(" \n")
    similarity.get_by_role("button").click()
    expect(similarity.get_by_role("status")).to_contain_text("Write something")
    page.close()


def test_boxes_that_no_model_fits_say_so(browser: Browser) -> None:
    from asyncembed.server import create_app

    with serving_in_thread(create_app({"ranks": TextCrossEncoder(fake_model("cross_encoder"))})) as url:
        page = browser.new_page()
        page.goto(url)
        expect(box(page, "Similarity").get_by_role("status")).to_contain_text("No model is served here")
        assert violations(page) == []  # before there are numbers, too
        expect(box(page, "Similarity").get_by_role("button")).to_have_count(0)
        expect(box(page, "Reranking").get_by_role("button")).to_be_visible()
        page.close()


# ---------------------------------------------------------------- who may see it, and what it may do


def test_the_api_key_is_asked_for_once_and_kept_nowhere(browser: Browser) -> None:
    from asyncembed.server import create_app

    app = create_app({"ranks": TextCrossEncoder(fake_model("cross_encoder"))}, api_key="secret")
    with serving_in_thread(app) as url, closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(url)
        key = page.get_by_label("API key")
        expect(key).to_be_focused()
        expect(page.get_by_role("heading", name="Models")).to_be_hidden()
        assert violations(page) == []
        for wrong in ("\N{KEY}", "wrong"):
            page.keyboard.type(wrong)
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("The server does not know this key.")
            expect(key).to_have_value("")
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Models")).to_be_visible()
        box(page, "Reranking").get_by_role("button").click()
        expect(box(page, "Reranking").get_by_role("listitem")).to_have_count(3)
        assert page.url == url
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert "secret" not in json.dumps(context.storage_state()) + page.content()
        page.reload()
        expect(key).to_be_focused()


def test_a_late_refusal_of_the_last_key_does_not_take_away_the_right_one(browser: Browser) -> None:
    from asyncembed.server import create_app

    held: list[Route] = []

    def hold_the_wrong_key(route: Route) -> None:
        if route.request.headers["authorization"] == "Bearer wrong":
            held.append(route)
        else:
            route.continue_()

    app = create_app({"ranks": TextCrossEncoder(fake_model("cross_encoder"))}, api_key="secret")
    with serving_in_thread(app) as url, closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(url)
        expect(page.get_by_label("API key")).to_be_focused()
        page.route("**/page.json", hold_the_wrong_key)
        for key in ("wrong", "secret"):
            page.keyboard.type(key)
            page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Models")).to_be_visible()
        with page.expect_response(lambda answer: answer.status == 401):
            held.pop().continue_()
        box(page, "Reranking").get_by_role("button").click()
        expect(box(page, "Reranking").get_by_role("listitem")).to_have_count(3)


def test_the_browser_runs_nothing_that_is_not_the_pages_own(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.goto(url)
    expect(page.get_by_role("status").first).to_have_text("ready")
    for attack in (
        "document.body.innerHTML = '<p>gone</p>'",
        "setTimeout('window.hit = 1')",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hit = 1'}))",
    ):
        with pytest.raises(Exception, match=r"Trusted(HTML|Script)|Content Security Policy"):
            page.evaluate(f"() => {{ {attack} }}")
    assert page.evaluate("fetch('https://example.com/').then(() => 'sent', () => 'refused')") == "refused"
    assert page.evaluate("'hit' in window") is False
    page.close()


# ---------------------------------------------------------------- for whom it is usable


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_with_all_its_results(page: Page, viewport: Any, scheme: Any) -> None:
    page.set_viewport_size(viewport)
    page.emulate_media(color_scheme=scheme)
    page.get_by_text("The same as a table").click()
    box(page, "Similarity").get_by_label("Texts").fill("the day\na very long line that has to be " + "broken " * 20)
    for name in ("Similarity", "Reranking", "Tokens"):
        box(page, name).get_by_role("button").click()
        expect(box(page, name).get_by_role("status")).to_contain_text(", in ")
    expect(page.get_by_role("img", name=re.compile("^Latency.*highest"))).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_all_of_it_can_be_reached_by_keyboard_in_the_order_in_which_it_stands(page: Page) -> None:
    stops = []
    for _ in range(15):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert stops == [
        "pause",
        "The same as a table",
        *("similarity-model", "similarity-texts", "Compare"),
        *("rerank-model", "rerank-query", "rerank-texts", "Rank"),
        *("tokens-model", "tokens-text", "Split"),
        *("What can be asked for (OpenAPI)", "Health", "Metrics"),
    ]


def test_everything_that_takes_input_has_a_name(page: Page) -> None:
    for role in ("textbox", "combobox", "button"):
        for control in page.get_by_role(role).all():
            expect(control).to_have_accessible_name(re.compile("."))


def test_headings_are_the_outline_of_the_page(page: Page) -> None:
    levels = [
        int(tag[1])
        for tag in page.locator("h1, h2, h3").evaluate_all(
            "all => all.filter(one => one.checkVisibility()).map(one => one.tagName)"
        )
    ]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
