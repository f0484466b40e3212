"""The page in a headless Chromium, from the disk."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.browser import FOUND, Browser, opened
from fixtures.evaluation import Evaluated
from fixtures.explored import page_by_hand, read_page, write_run
from fixtures.training import Prepared

from tsae.explore.page import explore

pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium here; on Debian: apt install chromium")

HOSTILE = [
    "<script>window.hurt = 1</script>",
    "</script><img src=x onerror='window.hurt = 2'>",
    "\"'><b id=hurt>`${window.hurt = 3}`",
    " \u202e\u0645\u0631\u062d\u0628\u0627\u0000\u2028\n",
    "javascript:window.hurt=4//",
    "%E0%A4%A",
    "\ud800",
    "",
]
VIEWS = (
    "#/",
    "#/list/baseline",
    "#/list/tokenized/share/up",
    "#/feature/baseline/0",
    "#/feature/tokenized/3",
    "#/token/2",
    "#/token/7",
    "#/text",
    "#/text/1",
    "#/text/1/3",
    "#/search/a",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as found:
        found.look(1200, 900)
        yield found


@pytest.fixture(scope="module")
def page(evaluated: Evaluated, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = write_run(tmp_path_factory.mktemp("run"), evaluated, prepared, "baseline", "tokenized")
    return Path(explore(results))


def text_of(browser: Browser) -> str:
    return str(browser.evaluate("document.getElementById('main').innerText"))


def test_every_view_works_without_complaint_or_network(browser: Browser, page: Path) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(page)
    for view in VIEWS:
        browser.go(view)
        text = text_of(browser)
        assert len(text) > 100 and not any(word in text for word in ("undefined", "NaN", "null", "Not found")), view
        for width in (390, 1200):
            browser.look(width, 900)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), (view, width)
    assert browser.complaints == [] and set(browser.requests) <= {"about:blank", page.resolve().as_uri()}


def test_a_deep_link_shows_the_feature_as_it_was_measured(browser: Browser, page: Path) -> None:
    _, blocks = read_page(page)
    columns, details = blocks["features-tokenized"], blocks["details-tokenized-0"]
    feature = int(columns["firings"].argmax())
    browser.open(page, f"#/feature/tokenized/{feature}")
    assert browser.evaluate("document.title").startswith(f"Feature {feature}, tokenized")
    card = "document.querySelector('.side.tokenized')"
    assert f"{columns['firings'][feature]} of" in browser.evaluate(f"{card}.innerText")
    shades = browser.evaluate(
        f"[...{card}.querySelector('.contexts li').querySelectorAll('.passage a')].map(a => Number(a.style.getPropertyValue('--share')))"
    )
    first = int(columns["context_counts"][:feature].sum())
    near = int(details["near_counts"][:first].sum())
    expected = [0.0] * int(columns["context_lengths"][first])
    for i in range(near, near + int(details["near_counts"][first])):
        expected[details["near_tokens"][i]] = details["near_values"][i] / columns["max_activation"][feature]
    assert shades == pytest.approx(expected, abs=1e-3) and max(shades) == 1
    assert browser.evaluate(f"{card}.querySelector('a.feature.baseline').textContent") == str(columns["match"][feature])


def test_a_search_finds_tokens_text_and_numbers(browser: Browser, page: Path) -> None:
    _, blocks = read_page(page)
    texts, tokens = blocks["words"]["texts"], blocks["sequences"]["tokens"]
    token = next(int(t) for t in tokens[1:] if len(texts[t].strip()) > 2)
    word = texts[token].strip()
    browser.open(page)
    browser.press("/")
    browser.type(word)
    browser.shows(f"#/search/{word}")
    # Typing continues in the field.
    assert browser.evaluate("document.activeElement.id") == "query"
    assert word in browser.evaluate("document.querySelector('.chips .token').textContent")
    said = browser.evaluate("document.getElementById('said').textContent")
    assert "tokens" in said and "places in held-out text" in said
    marked = browser.evaluate(
        "[...document.querySelectorAll('.contexts .shade')].map(a => a.textContent).join('|').toLowerCase()"
    )
    assert word.lower() in marked
    browser.press("ArrowDown")
    assert browser.evaluate("document.activeElement.matches('[data-item]')")
    browser.press("Escape")
    browser.shows("#/")
    browser.press("/")
    browser.type("12")
    browser.shows("#/search/12")
    browser.press("Enter")
    browser.shows("#/feature/baseline/12")


def test_keys_go_through_features_and_tokens(browser: Browser, page: Path) -> None:
    browser.open(page, "#/feature/tokenized/0")
    browser.press("j")
    browser.shows("#/feature/tokenized/1")
    browser.press("ArrowLeft")
    browser.shows("#/feature/tokenized/0")
    _, blocks = read_page(page)
    browser.press("o")
    browser.shows(f"#/feature/baseline/{blocks['features-tokenized']['match'][0]}")
    browser.go("#/text/1/3")
    browser.press("j")
    browser.shows("#/text/1/4")
    browser.press("?")
    assert browser.evaluate("document.getElementById('keys').open")
    browser.press("Escape")
    browser.wait("!document.getElementById('keys').open")
    browser.press("Escape")
    browser.shows("#/")
    browser.press("j")
    browser.press("j")
    items = "[...document.querySelectorAll('main [data-item]')].indexOf(document.activeElement)"
    assert browser.evaluate(items) == 1
    browser.press("Enter")
    browser.wait("document.getElementById('main').dataset.view.startsWith('#/feature/')")


def test_a_point_of_the_map_opens_its_feature(browser: Browser, page: Path) -> None:
    browser.look(1200, 900)
    browser.open(page)
    _, blocks = read_page(page)
    columns = blocks["features-baseline"]
    highest = int((columns["top_token_share"] * (columns["firings"] > 9)).argmax())
    box = browser.evaluate(
        "(() => { const c = document.querySelector('canvas.baseline'); c.scrollIntoView({block: 'center'}); const r = c.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] })()"
    )
    rates = [
        rate for role in ("baseline", "tokenized") for rate in blocks[f"features-{role}"]["firing_rate"] if rate > 0
    ]
    low, rate = math.log10(min(rates)), float(columns["firing_rate"][highest])
    x = box[0] + 40 + (math.log10(rate) - low) / -low * (box[2] - 52)
    y = box[1] + 10 + (1 - float(columns["top_token_share"][highest])) * (box[3] - 44)
    browser.click(x, y)
    browser.shows(f"#/feature/baseline/{highest}")


def test_dark_by_the_system_and_by_the_switch(browser: Browser, page: Path) -> None:
    def paper() -> str:
        return str(browser.evaluate("getComputedStyle(document.body).backgroundColor"))

    browser.look(1200, 900, dark=True)
    browser.open(page)
    dark = paper()
    browser.look(1200, 900, dark=False)
    browser.wait("document.getElementById('theme').textContent === 'Dark'")
    assert paper() == "rgb(255, 255, 255)" != dark
    browser.evaluate("document.getElementById('theme').click()")
    assert paper() == dark
    browser.evaluate("document.getElementById('theme').click()")


def test_assistive_technology_hears_what_is_drawn(browser: Browser, page: Path) -> None:
    browser.open(page)
    roles = browser.accessible()
    assert {"main", "navigation", "search", "status", "heading"} <= {role for role, _ in roles}
    maps = [name for role, name in roles if role == "image" and name.startswith("Map of the")]
    assert len(maps) == 2 and all("list of features has the same numbers" in name for name in maps)
    unnamed = [
        role for role, name in roles if role in ("link", "button", "searchbox", "combobox", "image") and not name
    ]
    assert unnamed == []


def test_parts_beside_the_page_are_read_when_they_are_needed(browser: Browser, page: Path, tmp_path: Path) -> None:
    explore(page.parent, tmp_path / "page.html", parts=tmp_path / "parts")
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(tmp_path / "page.html", "#/list/tokenized")
    assert not any(url.endswith(".js") for url in browser.requests)
    browser.go("#/text/1/3")
    assert "Most active features" in text_of(browser)
    asked = sorted(url.rpartition("/")[2] for url in browser.requests if url.endswith(".js"))
    assert asked == ["text-baseline-0.js", "text-tokenized-0.js"] and browser.complaints == []
    (tmp_path / "parts/details-tokenized-0.js").unlink()
    browser.go("#/feature/tokenized/0")
    assert "parts/details-tokenized-0.js is not beside this page; copy the folder with it" in text_of(browser)


@pytest.mark.parametrize("role", ["baseline", "tokenized"])
def test_a_run_with_one_sae_has_one_column(
    browser: Browser, evaluated: Evaluated, prepared: Prepared, tmp_path: Path, role: str
) -> None:
    page = Path(explore(write_run(tmp_path / "run", evaluated, prepared, role)))
    browser.complaints.clear()
    browser.open(page)
    for view in ("#/", f"#/list/{role}", f"#/feature/{role}/3", "#/token/300", "#/text/1/3", "#/search/a"):
        browser.go(view)
        assert len(text_of(browser)) > 100 and "undefined" not in text_of(browser)
    assert browser.complaints == []


@pytest.mark.refused("HTML in text of the corpus, in the feature explorer")
def test_hostile_text_is_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    page = page_by_hand(tmp_path / "hostile.html", 12, HOSTILE)
    browser.complaints.clear()
    browser.open(page)
    views = [*VIEWS, *(f"#/token/{token}" for token in range(len(HOSTILE)))]
    views += [
        "#/search/script",
        "#/search/%3Cscript%3E",
        "#/search/'",
        "#/search/%E0%A4%A",
        "#/<img src=x>",
        "#/feature/<b>/1",
        "#/text/find/<img src=x>",
    ]
    for view in views:
        browser.evaluate(f"location.hash = {view!r}")
        browser.wait(f"document.getElementById('main').dataset.view === location.hash && {view!r}.length > 0")
        assert browser.evaluate("window.hurt") is None, view
        assert browser.evaluate("document.querySelectorAll('main img, main script, #hurt').length") == 0, view
        hrefs = browser.evaluate("[...document.querySelectorAll('main a')].map(a => a.getAttribute('href'))")
        assert all(href.startswith("#/") for href in hrefs), view
    browser.go("#/token/0")
    assert "<script>window.hurt = 1</script>" in text_of(browser)
    browser.go("#/token/3")
    heading = browser.evaluate("document.querySelector('h1').textContent")
    assert "·⟨U+202E⟩\u0645\u0631\u062d\u0628\u0627␀⟨U+2028⟩↵" in heading
    assert browser.complaints == []


def test_ten_thousand_features_are_shown_within_two_seconds(browser: Browser, tmp_path: Path) -> None:
    words = [f" word{i}" for i in range(5000)]
    page = page_by_hand(tmp_path / "large.html", 10_000, words, n_sequences=256, n_ctx=128)
    browser.open(page)
    assert browser.evaluate("performance.getEntriesByName('first-paint')[0]?.startTime ?? 0") < 2000
    assert float(browser.evaluate("document.documentElement.dataset.ready")) < 2000
    start = time.monotonic()
    browser.go("#/list/tokenized")
    assert browser.evaluate("document.querySelectorAll('main tbody tr').length") <= 300
    browser.go("#/search/word12")
    browser.go("#/feature/tokenized/9999")
    assert time.monotonic() - start < 4
