"""The report in a real browser: no errors, sorting, filtering, pictures of a cell, nothing that accessibility forbids."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import albums
import numpy as np
import pytest

import kiln

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
DRIVER = shutil.which("chromedriver") or ""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1280,900", "--force-prefers-reduced-motion",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium or no chromedriver on the path")
    webdriver = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        driver = webdriver.Chrome(options=options, service=service.Service(DRIVER))
        yield driver
        driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run whose labels are partly random, so that there are mistakes, and its pages in both languages."""
    root = tmp_path_factory.mktemp("browser")
    draws = np.random.Generator(np.random.Philox(2))
    for split, num in (("train", 60), ("val", 30), ("test", 60)):
        for number in range(num):
            label = int(draws.integers(0, 3)) if number % 2 else number % 3
            albums.write(
                root / "photos" / split / albums.CLASSES[label] / f"{number:02d}.png",
                albums.swatch(number % 60, number % 3),
            )
    run = albums.train(root / "photos", root / "runs", epochs=3)
    return {lang: kiln.report(run, lang=lang, output=root / f"{lang}.html") for lang in ("en", "zh")}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_works(browser, pages, lang):
    browser.get(pages[lang].as_uri())
    assert browser.execute_script("return document.querySelectorAll('main > section').length") == 13
    check_sorting(browser)
    check_filter(browser)
    check_cells(browser)
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        )
        == 0
    )
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def check_sorting(browser):
    heads = browser.find_elements("css selector", "#class-table thead th")
    values = "return [...document.querySelectorAll('#class-table tbody tr')].map(r => Number(r.cells[3].dataset.value))"
    heads[3].find_element("tag name", "button").click()
    assert heads[3].get_attribute("aria-sort") == "ascending"
    rising = browser.execute_script(values)
    assert rising == sorted(rising)
    heads[3].find_element("tag name", "button").click()
    assert heads[3].get_attribute("aria-sort") == "descending"
    assert browser.execute_script(values) == rising[::-1]


def check_filter(browser):
    field = browser.find_element("css selector", "input[data-filter]")
    field.send_keys("gre")
    shown = "return [...document.querySelectorAll('#class-table tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    assert browser.execute_script(shown) == ["green"]
    field.send_keys("\ue003" * 3)
    assert len(browser.execute_script(shown)) == 3


def check_cells(browser):
    buttons = browser.find_elements("css selector", ".matrix td button.wrong")
    assert buttons, "the model made no mistake: the test needs some"
    for button in buttons:
        button.click()
        cell = browser.find_element("id", button.get_attribute("data-cell"))
        assert cell.get_attribute("open") is not None
        assert cell.is_displayed()
        true = browser.execute_script("return arguments[0].closest('tr').cells[0].textContent", button)
        keys = [code.text for code in cell.find_elements("css selector", "figcaption code")]
        assert len(keys) == int(button.text)
        assert all(Path(key).parent.name == true for key in keys)
        assert len(cell.find_elements("css selector", "svg.picture use")) == len(keys)
        width = "document.querySelector(use.getAttribute('href')).getBBox().width"
        drawn = f"return [...arguments[0].querySelectorAll('use')].every(use => {width} > 0)"
        assert browser.execute_script(drawn, cell)
        assert browser.execute_script("return document.activeElement.closest('details') === arguments[0]", cell)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_serious_for_axe_and_nothing_wider_than_the_screen(browser, pages, theme, width):
    axe = pytest.importorskip("axe_selenium_python").Axe
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(pages["en"].as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    checked = axe(browser)
    checked.inject()
    found = checked.run()
    assert len(found["passes"]) >= 20
    assert [
        (one["id"], one["nodes"][0]["html"]) for one in found["violations"] if one["impact"] in ("serious", "critical")
    ] == []


def test_the_theme_can_be_changed(browser, pages):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    )
    browser.get(pages["en"].as_uri())
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert browser.execute_script(colour) == "rgb(255, 255, 255)"
    browser.find_element("css selector", "button.theme").click()
    assert browser.execute_script(colour) == "rgb(20, 21, 24)"
    browser.find_element("css selector", "button.theme").click()
    assert browser.execute_script(colour) == "rgb(255, 255, 255)"
